// Uses the installed library, and nothing of the tree that built it.
#include <cstdio>
#include <holo/error.hpp>

int main() {
  holo::Status status = holo::fail(holo::Errc::not_found, "no region \"xs\"", "holo regions lists them");
  std::printf("%s: %s\n", holo::errc_name(status.error().code), status.error().to_string().c_str());
}
