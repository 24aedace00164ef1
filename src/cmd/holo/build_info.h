// What this program was built from.
#pragma once

namespace holo::cmd {

/// The commit, short; "unknown" outside a repository.
const char* build_commit();
/// "release", or "dev" for anything else.
const char* build_kind();

}  // namespace holo::cmd
