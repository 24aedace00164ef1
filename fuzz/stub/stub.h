// No cryptography: the crypto module's interface for fuzz programs that want mutated packets to get past it. Everything
// is in clear, and every tag, signature and key is right unless its marker was hit. Linked into the fuzz preset's
// *_stub_fuzz programs in place of the module (cmake/Programs.cmake), and into nothing else.
#pragma once

namespace holo::crypto::stub {

/// Found in every program that the stub was linked into; a test looks for it in those that it must not be in.
inline constexpr char kMarker[] = "holo fuzz: this program does no cryptography";

/// Of a tag's 16 bytes the first eight name the key; this bit of the last one makes it wrong.
inline constexpr unsigned char kBroken = 0x80;

/// True: a tag must have been made with the very same key. False: with any.
extern bool keys_matter;

}  // namespace holo::crypto::stub
