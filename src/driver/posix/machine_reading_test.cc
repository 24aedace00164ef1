#include "driver/posix/machine_reading.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

namespace holo::driver {
namespace {

class MachineReading : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/holo-reading-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    root_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  std::string root_;
};

TEST_F(MachineReading, WhatIsNotThereIsLeftOut) {
  const auto r = read_machine(root_);
  EXPECT_FALSE(r.memory_pressure || r.memory_available || r.heat);
}

TEST_F(MachineReading, ReadsWhatTheKernelWrites) {
  write("/proc/pressure/memory", "some avg10=12.50 avg60=3.00 avg300=1.00 total=99\nfull avg10=0.00\n");
  write("/proc/meminfo", "MemTotal:       1000 kB\nMemFree:  10 kB\nMemAvailable:    250 kB\n");
  write("/sys/class/thermal/thermal_zone0/temp", "40000\n");
  write("/sys/class/thermal/thermal_zone0/trip_point_0_type", "critical\n");
  write("/sys/class/thermal/thermal_zone0/trip_point_0_temp", "100000\n");
  write("/sys/class/thermal/thermal_zone1/temp", "81000\n");
  write("/sys/class/thermal/thermal_zone1/trip_point_0_type", "passive\n");
  write("/sys/class/thermal/thermal_zone1/trip_point_0_temp", "80000\n");
  write("/sys/class/thermal/thermal_zone1/trip_point_1_type", "critical\n");
  write("/sys/class/thermal/thermal_zone1/trip_point_1_temp", "90000\n");
  const auto r = read_machine(root_);
  EXPECT_DOUBLE_EQ(*r.memory_pressure, 0.125);
  EXPECT_DOUBLE_EQ(*r.memory_available, 0.25);
  EXPECT_DOUBLE_EQ(*r.heat, 0.9);
}

TEST_F(MachineReading, NonsenseIsLeftOut) {
  write("/proc/pressure/memory", "some avg10=lots\n");
  write("/proc/meminfo", "MemTotal: 0 kB\nMemAvailable: 5 kB\n");
  write("/sys/class/thermal/thermal_zone0/temp", "40000\n");
  write("/sys/class/thermal/thermal_zone0/trip_point_0_type", "critical\n");
  write("/sys/class/thermal/thermal_zone0/trip_point_0_temp", "-274000\n");
  const auto r = read_machine(root_);
  EXPECT_FALSE(r.memory_pressure || r.memory_available || r.heat);
}

}  // namespace
}  // namespace holo::driver
