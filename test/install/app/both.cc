// AWS-LC, inside libholo, and the system's libcrypto live in one program: each caller gets its own.
#include <cstdio>
#include <holo/error.hpp>

extern "C" const char* OpenSSL_version(int what);  // The system's, linked after libholo.

int main() { std::printf("%s, %s\n", holo::errc_name(holo::Errc::not_found), OpenSSL_version(0)); }
