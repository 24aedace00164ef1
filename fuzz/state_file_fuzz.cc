// The files that a node reads when it starts, whatever happened to them on disk: the first byte chooses which one the
// rest is.
#include <unistd.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

#include "cmd/holo/config.h"
#include "cmd/holo/state_dir.h"
#include "fuzzing.h"

namespace {

using namespace holo;
using fuzz::expect;

/// A folder in memory, gone with the program.
struct Folder {
  std::string path;
  Folder() {
    std::string name = (std::filesystem::exists("/dev/shm") ? "/dev/shm" : "/tmp") + std::string("/holo-fuzz-XXXXXX");
    expect(mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  void write(const char* name, ByteSpan bytes) const {
    std::ofstream file(path + "/" + name, std::ios::binary | std::ios::trunc);
    file.write(as_text(bytes).data(), static_cast<std::streamsize>(bytes.size()));
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  static const Folder folder;
  if (size == 0) return 0;
  const ByteSpan content = std::as_bytes(std::span(bytes + 1, size - 1));
  switch (bytes[0] % 4) {
    case 0: {
      folder.write("cluster.json", content);
      const auto membership = cmd::read_membership(folder.path);
      if (!membership || !*membership) break;
      expect(cmd::write_membership(folder.path, **membership).has_value());
      const auto again = cmd::read_membership(folder.path);
      expect(again && *again && (*again)->id == (*membership)->id && (*again)->keys == (*membership)->keys &&
             (*again)->name == (*membership)->name && (*again)->certificate == (*membership)->certificate);
      break;
    }
    case 1: {
      folder.write("trust.pins", content);
      hyperbus::TrustBook book(hyperbus::TrustMode::tofu);
      (void)cmd::read_pins(folder.path, book);
      break;
    }
    case 2:
      folder.write("root.key", content);
      (void)cmd::read_root_key(folder.path + "/root.key");
      break;
    default:
      folder.write("config.toml", content);
      (void)cmd::load_config({.flags = {{"state_dir", folder.path}}, .config_file = folder.path + "/config.toml"});
      break;
  }
  return 0;
}
