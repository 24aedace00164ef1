// What libprotobuf has to say about hostile bytes belongs into the log, not onto somebody's standard error.
#pragma once

namespace holo::wire {

/// From now on libprotobuf's messages are lines of this program's log, at level debug: every decoder reports failure by
/// value. Call once, before threads.
void route_protobuf_log();

}  // namespace holo::wire
