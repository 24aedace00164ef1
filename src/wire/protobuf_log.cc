#include "wire/protobuf_log.h"

#include <google/protobuf/stubs/logging.h>

#include <string>

#include "base/log.h"

namespace holo::wire {

void route_protobuf_log() {
  google::protobuf::SetLogHandler(
      [](google::protobuf::LogLevel, const char*, int, const std::string& text) { log_debug("protobuf", text); });
}

}  // namespace holo::wire
