// HoloCompute: one memory and one computer out of many machines. Include this; link libholo.
#pragma once

#include <holo/array.hpp>
#include <holo/buffer.hpp>
#include <holo/chunk.hpp>
#include <holo/cluster.hpp>
#include <holo/error.hpp>
#include <holo/future.hpp>
#include <holo/kv.hpp>
#include <holo/lock.hpp>
#include <holo/types.hpp>
