// What stays where it is from call to call, known by a number: blocks with their parameters, caches.
//
// A program that takes all arrays of all blocks as arguments has JAX look at some hundred of them at
// every call; one that takes numbers has it look at one.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

#include "decoder_layer.h"
#include "mailbox.h"

namespace bluejay {

// A number is never given twice, so an old one finds nothing.
template <typename Kept>
class Residents {
 public:
  int32_t add(const Kept& kept) {
    const std::unique_lock guard(mutex_);
    kept_.emplace(++last_, kept);
    return last_;
  }

  // Waits for the calls that use it.
  bool remove(int32_t number) {
    const std::unique_lock guard(mutex_);
    return kept_.erase(number) == 1;
  }

  // use(kept) while nobody can remove it, use(nullptr) if there is no such number.
  template <typename Use>
  auto with(int32_t number, const Use& use) const {
    const std::shared_lock guard(mutex_);
    const auto found = kept_.find(number);
    return use(found == kept_.end() ? nullptr : &found->second);
  }

 private:
  mutable std::shared_mutex mutex_;
  std::unordered_map<int32_t, Kept> kept_;
  int32_t last_ = 0;
};

// A block: the layer's sizes of a call and its arrays beside the parameters are left open.
using ResidentBlocks = Residents<DecoderLayer>;

// A cache of `rows` sequences. All layers of one lie together, so that what is not used takes no
// memory, be pages large or small.
struct KeptCache {
  CacheKind kind;
  int64_t layers, rows, kv_heads, capacity, width;
  CachePart keys, values;  // [rows, layers, kv_heads, capacity, width], scales without the last
  std::shared_ptr<Mailbox> mail;  // of the call that runs over it

  // Where one layer of the first row begins.
  CachePart part(const CachePart& whole, int64_t layer) const {
    const int64_t places = layer * kv_heads * capacity;
    const int64_t bytes = kind == CacheKind::kFloat32 ? 4 : kind == CacheKind::kFloat16 ? 2 : 1;
    return {static_cast<char*>(whole.data) + places * width * bytes,
            whole.scales == nullptr ? nullptr : whole.scales + places};
  }
};

using ResidentCaches = Residents<KeptCache>;

}  // namespace bluejay
