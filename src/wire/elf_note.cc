#include "wire/elf_note.h"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <string_view>

namespace holo::wire {
namespace {

constexpr std::size_t kMaxVersion = 64;
constexpr std::string_view kNoteName{"holo\0", 5};  // Notes count the final zero.

/// The T at `offset`; false when it does not lie inside.
template <class T>
bool load(ByteSpan file, std::uint64_t offset, T& out) {
  if (offset > file.size() || file.size() - offset < sizeof(T)) return false;
  std::memcpy(&out, file.data() + offset, sizeof(T));
  return true;
}

std::uint64_t padded(std::uint64_t bytes) { return (bytes + 3) & ~std::uint64_t{3}; }

/// Looks through one segment of notes; false when it is none of ours.
bool search(ByteSpan notes, HoloNote& out) {
  Elf64_Nhdr head{};
  std::uint64_t at = 0;
  while (load(notes, at, head)) {
    const std::uint64_t name = at + sizeof head, text = name + padded(head.n_namesz),
                        end = text + padded(head.n_descsz);
    if (end > notes.size()) return false;
    const auto name_bytes = as_text(notes.subspan(name, head.n_namesz));
    if (name_bytes == kNoteName && head.n_type == 1 && head.n_descsz >= 4 && load(notes, text, out.local_protocol)) {
      auto version = as_text(notes.subspan(text + 4, head.n_descsz - 4));
      version = version.substr(0, std::min(version.find('\0'), kMaxVersion));
      out.version = version;
      return true;
    }
    at = end;
  }
  return false;
}

}  // namespace

Result<HoloNote> find_holo_note(ByteSpan file) {
  Elf64_Ehdr elf{};
  const bool elf64 = load(file, 0, elf) && std::memcmp(elf.e_ident, ELFMAG, SELFMAG) == 0 &&
                     elf.e_ident[EI_CLASS] == ELFCLASS64 && elf.e_ident[EI_DATA] == ELFDATA2LSB;
  if (!elf64)
    return fail(Errc::wrong_build, "it is not a 64-bit Linux program",
                "build it for this machine and link it with holo");
  if (elf.e_phentsize != sizeof(Elf64_Phdr)) return fail(Errc::malformed, "its program headers are damaged");
  for (std::uint64_t i = 0; i < elf.e_phnum; ++i) {
    Elf64_Phdr segment{};
    if (elf.e_phoff > file.size() || !load(file, elf.e_phoff + i * sizeof segment, segment)) {
      return fail(Errc::malformed, "its program headers are cut short");
    }
    if (segment.p_type != PT_NOTE) continue;
    if (segment.p_offset > file.size() || file.size() - segment.p_offset < segment.p_filesz) {
      return fail(Errc::malformed, "its notes are cut short");
    }
    HoloNote note;
    if (search(file.subspan(segment.p_offset, segment.p_filesz), note)) return note;
  }
  return fail(Errc::wrong_build, "it does not link holo",
              "link it with libholo (find_package(holo), or pkg-config holo)");
}

}  // namespace holo::wire
