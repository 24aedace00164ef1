#include "wire/elf_note.h"

#include <elf.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>

namespace holo::wire {
namespace {

void append(Bytes& out, const void* data, std::size_t size) {
  const auto* p = static_cast<const std::byte*>(data);
  out.insert(out.end(), p, p + size);
}

/// An ELF file with one segment of notes: a stranger's, then `name` with `description`.
Bytes program(std::string_view name, const Bytes& description) {
  Elf64_Ehdr elf{};
  std::memcpy(elf.e_ident, ELFMAG, SELFMAG);
  elf.e_ident[EI_CLASS] = ELFCLASS64;
  elf.e_ident[EI_DATA] = ELFDATA2LSB;
  elf.e_phoff = sizeof elf;
  elf.e_phentsize = sizeof(Elf64_Phdr);
  elf.e_phnum = 1;
  Bytes notes;
  const auto note = [&](std::string_view n, std::uint32_t type, const Bytes& d) {
    const Elf64_Nhdr head{static_cast<Elf64_Word>(n.size()), static_cast<Elf64_Word>(d.size()), type};
    append(notes, &head, sizeof head);
    append(notes, n.data(), n.size());
    notes.resize((notes.size() + 3) / 4 * 4);
    append(notes, d.data(), d.size());
    notes.resize((notes.size() + 3) / 4 * 4);
  };
  note(std::string_view("GNU\0", 4), 1, Bytes(16));
  note(name, 1, description);
  Elf64_Phdr segment{};
  segment.p_type = PT_NOTE;
  segment.p_offset = sizeof elf + sizeof segment;
  segment.p_filesz = notes.size();
  Bytes out;
  append(out, &elf, sizeof elf);
  append(out, &segment, sizeof segment);
  append(out, notes.data(), notes.size());
  return out;
}

Bytes description(std::string_view version) {
  const std::uint32_t protocol = 1;
  Bytes out;
  append(out, &protocol, 4);
  append(out, version.data(), version.size());
  out.push_back(std::byte{0});
  return out;
}

const std::string_view kName("holo\0", 5);

TEST(ElfNote, FindsProtocolAndVersion) {
  const auto note = find_holo_note(program(kName, description("0.1.0")));
  ASSERT_TRUE(note) << note.error().message;
  EXPECT_EQ(note->local_protocol, 1u);
  EXPECT_EQ(note->version, "0.1.0");
}

TEST(ElfNote, OtherProgramsAreWrongBuild) {
  EXPECT_EQ(find_holo_note({}).error().code, Errc::wrong_build);
  EXPECT_EQ(find_holo_note(as_bytes("#!/bin/sh\nexit 0\n")).error().code, Errc::wrong_build);
  EXPECT_EQ(find_holo_note(program(std::string_view("hola\0", 5), description("1"))).error().code, Errc::wrong_build);
  EXPECT_EQ(find_holo_note(program(kName, Bytes(2))).error().code, Errc::wrong_build);
  std::ifstream file("/bin/sh", std::ios::binary);
  const std::string shell((std::istreambuf_iterator<char>(file)), {});
  EXPECT_EQ(find_holo_note(as_bytes(shell)).error().code, Errc::wrong_build);
}

TEST(ElfNote, NoTruncationAndNoFlippedByteDoesHarm) {
  const auto whole = program(kName, description("0.1.0"));
  for (std::size_t n = 0; n < whole.size(); ++n) {
    EXPECT_FALSE(find_holo_note(ByteSpan(whole).first(n))) << n;
  }
  for (std::size_t i = 0; i < whole.size(); ++i) {
    for (const auto value : {0x00, 0x7f, 0xff}) {
      auto damaged = whole;
      damaged[i] = static_cast<std::byte>(value);
      (void)find_holo_note(damaged);  // Sanitizers watch the reads.
    }
  }
}

}  // namespace
}  // namespace holo::wire
