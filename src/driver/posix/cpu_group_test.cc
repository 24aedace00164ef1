#include "driver/posix/cpu_group.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>

namespace holo::driver {
namespace {

constexpr const char* kVersion1 =
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "33 31 0:30 / /sys/fs/cgroup/cpuacct,cpu rw,relatime shared:7 - cgroup cgroup rw,cpuacct,cpu\n"
    "34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
constexpr const char* kVersion2 = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

TEST(CpuGroup, Version1IsFoundBesideTheUnifiedHierarchy) {
  const auto found =
      cpu_hierarchy(kVersion1, "9:name=systemd:/x\n4:cpuset:/other\n2:cpuacct,cpu:/user/me\n0::/unified\n");
  ASSERT_TRUE(found);
  EXPECT_EQ(*found, (CpuHierarchy{.top = "/sys/fs/cgroup/cpuacct,cpu",
                                  .own = "/sys/fs/cgroup/cpuacct,cpu/user/me",
                                  .version = CpuGroupVersion::v1}));
}

TEST(CpuGroup, Version2OfALoginSession) {
  const auto found = cpu_hierarchy(kVersion2, "0::/user.slice/user-0.slice/session-3.scope\n");
  ASSERT_TRUE(found);
  EXPECT_EQ(*found, (CpuHierarchy{.top = "/sys/fs/cgroup",
                                  .own = "/sys/fs/cgroup/user.slice/user-0.slice/session-3.scope",
                                  .version = CpuGroupVersion::v2}));
}

TEST(CpuGroup, AContainersMountShowsPartOfTheHierarchy) {
  const auto mount = "35 24 0:30 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
  EXPECT_EQ(cpu_hierarchy(mount, "0::/docker/abc\n")->own, "/sys/fs/cgroup");
  EXPECT_EQ(cpu_hierarchy(mount, "0::/docker/abc/inner\n")->own, "/sys/fs/cgroup/inner");
  EXPECT_EQ(cpu_hierarchy(mount, "0::/elsewhere\n")->own, "/sys/fs/cgroup");
  EXPECT_EQ(cpu_hierarchy(kVersion2, "0::/../outside\n")->own, "/sys/fs/cgroup");
}

TEST(CpuGroup, AMachineWithoutControlGroupsIsRefused) {
  const auto found = cpu_hierarchy("22 1 0:21 / /proc rw - proc proc rw\ngarbage\n", "");
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().code, Errc::unsupported);
}

TEST(CpuGroup, InVersion2AGroupWithProcessesIsNoParent) {
  // As a login session's scope looks: the controller must not be switched on there.
  const auto folder = testing::TempDir() + "holo-cgroup-" + std::to_string(::getpid());
  std::filesystem::create_directory(folder);
  const auto file = [&](const char* name, const char* text) { std::ofstream(folder + "/" + name) << text; };
  file("cgroup.type", "domain\n");
  file("cgroup.procs", "17\n");
  file("cgroup.subtree_control", "");
  const CpuGroupParent parent{.folder = folder, .version = CpuGroupVersion::v2};
  EXPECT_EQ(try_cpu_group_parent(parent).error().code, Errc::unsupported);
  EXPECT_EQ(std::filesystem::file_size(folder + "/cgroup.subtree_control"), 0U);
  file("cgroup.procs", "");
  file("cgroup.type", "domain threaded\n");
  EXPECT_EQ(try_cpu_group_parent(parent).error().code, Errc::unsupported);
  EXPECT_EQ(std::filesystem::file_size(folder + "/cgroup.subtree_control"), 0U);
  // A folder of an ordinary file system gets that far, but has no quotas.
  file("cgroup.type", "domain\n");
  EXPECT_EQ(try_cpu_group_parent(parent).error().code, Errc::unsupported);
  EXPECT_EQ(std::filesystem::file_size(folder + "/cgroup.subtree_control"), 4U);
  std::filesystem::remove_all(folder);
}

TEST(CpuGroup, AShareIsSetAndEverythingRemoved) {
  const auto parent = find_cpu_group_parent();
  if (!parent) GTEST_SKIP() << "no rights over control groups here: " << parent.error().message;
  const auto folder = make_cpu_group(*parent, "holo-test-" + std::to_string(::getpid()), 0.4);
  ASSERT_TRUE(folder) << folder.error().message;
  const pid_t child = ::fork();
  if (child == 0) {
    const auto group = open_cpu_group(*folder);
    if (!group || ::write(group->get(), "0", 1) != 1) ::_exit(1);
    for (;;) ::pause();
  }
  // It goes although a process sits in it: that one is killed.
  const auto text = [&](const char* name) {
    std::ifstream file(*folder + name);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  while (text("/cgroup.procs").empty()) std::this_thread::yield();
  if (parent->version == CpuGroupVersion::v2) {
    EXPECT_EQ(text("/cpu.max"), "4000 10000\n");
  } else {
    EXPECT_EQ(text("/cpu.cfs_quota_us") + text("/cpu.cfs_period_us"), "4000\n10000\n");
  }
  // A child that nobody waits for stays in its group on some kernels; waited for, it leaves.
  std::thread reaper([child] { ::waitpid(child, nullptr, 0); });
  EXPECT_TRUE(remove_cpu_group(*folder, seconds(5)));
  reaper.join();
  EXPECT_NE(::access(folder->c_str(), F_OK), 0);
  EXPECT_TRUE(remove_cpu_group(*folder, seconds(5)));
}

}  // namespace
}  // namespace holo::driver
