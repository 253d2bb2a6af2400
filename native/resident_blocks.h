// Blocks whose parameters stay where they are from call to call, known by a number.
//
// A program that takes all arrays of all blocks as arguments has JAX look at some hundred of them at
// every call; one that takes numbers has it look at one.
#pragma once

#include <cstdint>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

#include "decoder_layer.h"

namespace bluejay {

// A number is never given twice, so an old one finds nothing.
class ResidentBlocks {
 public:
  // The layer's sizes of a call and its arrays beside the parameters are left open.
  int32_t add(const DecoderLayer& layer) {
    const std::unique_lock guard(mutex_);
    layers_.emplace(++last_, layer);
    return last_;
  }

  // Waits for the calls that read it.
  bool remove(int32_t number) {
    const std::unique_lock guard(mutex_);
    return layers_.erase(number) == 1;
  }

  // use(layer) while nobody can remove it, use(nullptr) if there is no such block.
  template <typename Use>
  auto with(int32_t number, const Use& use) const {
    const std::shared_lock guard(mutex_);
    const auto found = layers_.find(number);
    return use(found == layers_.end() ? nullptr : &found->second);
  }

 private:
  mutable std::shared_mutex mutex_;
  std::unordered_map<int32_t, DecoderLayer> layers_;
  int32_t last_ = 0;
};

}  // namespace bluejay
