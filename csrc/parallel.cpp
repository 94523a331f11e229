#include "parallel.h"

#include <mutex>
#include <system_error>

#include "unroll/engine.h"

namespace pad_fast {

void run_pieces(int pieces, void (*task)(void*, int), void* context) {
  static std::mutex mutex;
  // Never deleted: joining threads while the process ends is asking for trouble.
  static unroll::Pool* pool = nullptr;
  static int size = 0;
  if (pieces > 1) {
    const std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
    if (lock.owns_lock()) {
      try {
        if (size < pieces) {
          delete pool;
          pool = new unroll::Pool(pieces);
          size = pieces;
        }
        pool->run(pieces, task, context);
        return;
      } catch (const std::system_error&) {
        // The system grants no more threads, which shows before the first piece is begun.
        delete pool;
        pool = nullptr;
        size = 0;
      }
    }
  }
  for (int piece = 0; piece < pieces; ++piece) task(context, piece);
}

}  // namespace pad_fast
