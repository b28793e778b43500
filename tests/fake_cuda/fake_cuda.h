// What the stand-ins for CUDA's libraries share.
#pragma once

#include <cstdint>
#include <string>

// Adds to the counter of that name, which tests read.
void count(const std::string& name, int64_t amount = 1);

// A handle that no other call has returned; never dereferenced.
void* fresh();
