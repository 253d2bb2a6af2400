#!/bin/sh
# Builds the engines that Bluejay is compared with, from PyPI alone:
#
#     benchmarks/peers/build.sh FOLDER [all|llama.cpp|llama-server|venv|openvino]
#
# FOLDER/llama.cpp/bin   llama-bench, llama-batched-bench, llama-perplexity, native flags
# FOLDER/llama-server    bin/llama-server, the same flags, without its page (not part of "all")
# FOLDER/venv            CTranslate2, OpenVINO, transformers, torch, llama-cpp-python
# FOLDER/venv-openvino   optimum-intel, which converts for OpenVINO and wants an older transformers
#
# Compiling takes about eight minutes on two cores. What is there already is not built again.
# Needs python3 (3.11 or newer), a C++ compiler, cmake and ninja. JOBS is the number of compilers
# at once.
set -eu

folder=${1:?"give the folder to build in"}
part=${2:-all}
python=${PYTHON:-python3}
jobs=${JOBS:-2}
llama=0.3.36
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
source=$folder/llama_cpp_python-$llama

wanted() { [ "$part" = all ] || [ "$part" = "$1" ]; }

# The package's source distribution carries llama.cpp whole.
fetch_llama() {
  if [ -d "$source" ]; then return; fi
  "$python" -m pip download --quiet --no-deps --no-binary llama-cpp-python \
    --dest "$folder/sdist" "llama-cpp-python==$llama"
  tar xzf "$folder/sdist/llama_cpp_python-$llama.tar.gz" -C "$folder"
}

build_llama() {
  fetch_llama
  cmake -S "$source/vendor/llama.cpp" -B "$folder/llama.cpp" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF \
    >"$folder/llama.cpp-configure.log"
  ninja -C "$folder/llama.cpp" -j "$jobs" llama-bench llama-batched-bench llama-perplexity
}

# Its page would be fetched from a hub while it is built; the API needs none.
build_llama_server() {
  fetch_llama
  cmake -S "$source/vendor/llama.cpp" -B "$folder/llama-server" -G Ninja \
    -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=ON -DLLAMA_BUILD_TESTS=OFF \
    -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_UI=OFF \
    -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF \
    >"$folder/llama-server-configure.log"
  ninja -C "$folder/llama-server" -j "$jobs" llama-server
}

# llama-cpp-python without a library of its own: it loads the one that was just compiled from
# LLAMA_CPP_LIB_PATH, so that both are the same code with the same flags.
build_venv() {
  fetch_llama
  "$python" -m venv "$folder/venv"
  "$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 \
    ctranslate2==4.8.5 openvino==2026.4.1 gguf numpy safetensors
  CMAKE_ARGS=-DLLAMA_BUILD=OFF "$folder/venv/bin/python" -m pip install --quiet \
    --no-binary llama-cpp-python "llama-cpp-python==$llama"
}

build_openvino() {
  "$python" -m venv "$folder/venv-openvino"
  "$folder/venv-openvino/bin/python" -m pip install --quiet optimum-intel==2.2.0 nncf==3.4.0 \
    openvino==2026.4.1 torch==2.13.0
  # Text models need none, and one that does not fit the kind of torch (CPU, CUDA) stops the import.
  "$folder/venv-openvino/bin/python" -m pip uninstall --quiet --yes torchvision
}

if wanted llama.cpp; then build_llama; fi
# Only the benchmark of servers wants it.
if [ "$part" = llama-server ]; then build_llama_server; fi
if wanted venv; then build_venv; fi
if wanted openvino; then build_openvino; fi
echo "The peers are in $folder."
