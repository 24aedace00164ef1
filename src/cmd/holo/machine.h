// What this machine is: addresses, cores, memory, speed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace holo::cmd {

std::uint32_t core_count();
/// Installed memory, in bytes; 0 when unknown.
std::uint64_t memory_bytes();
/// Memory that could be used now without swapping; 0 when unknown.
std::uint64_t available_memory_bytes();
/// The same on every start of this machine, and on no other: "m-" and 12 digits made from its machine-id, else its host
/// name.
std::string machine_label();
/// Addresses by which other machines probably reach this one: of each family the first that is not loopback, IPv4
/// before IPv6 (in brackets; when it is the only one, also without `also_v6`); 127.0.0.1 when there is none.
std::vector<std::string> own_addresses(bool also_v6);
/// How fast one core is, against the reference machine (1.0): the best of kSpeedRounds short rounds, and how far the
/// median of them was below it, which tells how busy the machine was. Cost: about 30 ms.
struct SpeedMeasurement {
  double best = 0;
  double spread = 0;  ///< (best - median) / best
};
inline constexpr int kSpeedRounds = 31;
SpeedMeasurement measure_speed();

}  // namespace holo::cmd
