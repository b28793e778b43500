// A loop over masks on several threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace vjepa {

// About half a millisecond of work: starting a thread on a busy core can cost more than that.
constexpr int64_t kTokensPerThread = int64_t{1} << 20;

// num_threads: 0 is one per core.
inline int64_t count_workers(int64_t num_tokens, int num_threads) {
    const int64_t most = (num_tokens + kTokensPerThread - 1) / kTokensPerThread;
    if (most <= 1) return 1;  // avoids hardware_concurrency, which takes microseconds
    const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
    return std::min<int64_t>(num_threads > 0 ? num_threads : cores, most);
}

// Calls work(worker, i) for every i in [0, count), each worker on its own thread. work must not
// throw.
template <typename Work>
void parallel_for(int64_t count, int64_t workers, const Work& work) {
    constexpr int64_t kChunk = 16;
    std::atomic<int64_t> next{0};
    const auto run = [&](int64_t worker) {
        for (int64_t begin; (begin = next.fetch_add(kChunk)) < count;) {
            for (int64_t i = begin; i < std::min(begin + kChunk, count); ++i) work(worker, i);
        }
    };
    if (workers == 1) return run(0);
    std::vector<std::thread> threads;
    threads.reserve(workers - 1);
    try {
        for (int64_t worker = 1; worker < workers; ++worker) threads.emplace_back(run, worker);
    } catch (const std::system_error&) {
        // No more threads available: those that started and this one do all the work.
    }
    run(0);
    for (auto& thread : threads) thread.join();
}

}  // namespace vjepa
