// The table of C functions through which ngtcp2 calls a Connection, its user data.
#pragma once

#include <ngtcp2/ngtcp2.h>

namespace holo::driver::quic {

const ngtcp2_callbacks& callbacks();
/// For ngtcp2_settings, where the connection has a sink.
ngtcp2_qlog_write qlog_writer();

}  // namespace holo::driver::quic
