#include "cmd/holo/build_info.h"

namespace holo::cmd {

const char* build_commit() { return HOLO_COMMIT; }

const char* build_kind() { return HOLO_BUILD_KIND; }

}  // namespace holo::cmd
