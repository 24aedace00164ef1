#include "driver/posix/address.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace holo::driver {
namespace {

TEST(HostPorts, Parse) {
  EXPECT_EQ(parse_host_port("node1:8443")->host, "node1");
  EXPECT_EQ(parse_host_port("[::1]:0")->host, "::1");
  EXPECT_EQ(parse_host_port("[fe80::1]:65535")->port, 65535);
  for (const char* bad :
       {"", ":", "host", "host:", ":80", "host:65536", "host:-1", "host:8o", "::1:80", "[::1:80", "host: 80"}) {
    EXPECT_EQ(parse_host_port(bad).error().code, Errc::invalid_argument) << bad;
  }
}

TEST(FailBind, TellsWhatTheCallerCanDo) {
  EXPECT_EQ(fail_bind(EADDRINUSE, "x:1").error().code, Errc::already_exists);
  EXPECT_EQ(fail_bind(EADDRNOTAVAIL, "x:1").error().code, Errc::invalid_argument);
  EXPECT_EQ(fail_bind(EAFNOSUPPORT, "x:1").error().code, Errc::invalid_argument);
  EXPECT_EQ(fail_bind(EACCES, "x:1").error().code, Errc::permission_denied);
  EXPECT_EQ(fail_bind(ENOMEM, "x:1").error().code, Errc::io_error);
}

}  // namespace
}  // namespace holo::driver
