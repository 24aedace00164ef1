#include "driver/posix/agent_registry.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "driver/posix/files.h"
#include "env/fd.h"

namespace holo::driver {
namespace {

/// Private XDG directories, and sockets that answer.
class AgentRegistry : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/holo-registry-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    root_ = name;
    for (const char* v : {"HOLO_SOCKET", "HOLO_STATE_DIR", "HOLO_CLUSTER", "HOLO_NODE", "RUNTIME_DIRECTORY"})
      ::unsetenv(v);
    ::setenv("XDG_RUNTIME_DIR", (root_ + "/run").c_str(), 1);
    ::setenv("XDG_STATE_HOME", (root_ + "/state").c_str(), 1);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  AgentRecord agent(const std::string& cluster, const std::string& node) {
    AgentRecord r;
    r.socket = root_ + "/" + cluster + node;
    r.state_dir = root_ + "/state/" + node;
    r.cluster_id = "id-" + cluster;
    r.cluster_name = cluster;
    r.node_id = cluster + node;
    r.node_name = node;
    r.pid = ::getpid();
    return r;
  }
  env::Fd listen_at(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    env::Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(fd.get(), 8), 0);
    return fd;
  }
  std::string root_;
};

TEST_F(AgentRegistry, NoAgentIsAnErrorThatSaysHowToGetOne) {
  auto none = choose_agent({});
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, Errc::not_found);
  EXPECT_FALSE(none.error().hint.empty());
}

TEST_F(AgentRegistry, TheFirstLiveAgentOfTheOnlyClusterIsChosen) {
  const auto a = agent("c", "node1"), b = agent("c", "node2");
  ASSERT_TRUE(publish_agent(b));
  ASSERT_TRUE(publish_agent(a));
  EXPECT_EQ(choose_agent({}).error().code, Errc::not_found) << "a record alone is no agent";
  auto socket_b = listen_at(b.socket);
  EXPECT_EQ(*choose_agent({}), b) << "node1 does not answer";
  auto socket_a = listen_at(a.socket);
  EXPECT_EQ(*choose_agent({}), a);
  EXPECT_EQ(*choose_agent({.node = "node2"}), b);
  EXPECT_EQ(choose_agent({.node = "node3"}).error().code, Errc::not_found);
  ASSERT_TRUE(withdraw_agent(a));
  EXPECT_EQ(published_agents().size(), 1u);
}

TEST_F(AgentRegistry, SeveralClustersNeedAChoice) {
  const auto a = agent("red", "node1"), b = agent("blue", "node2");
  ASSERT_TRUE(publish_agent(a));
  ASSERT_TRUE(publish_agent(b));
  auto socket_a = listen_at(a.socket), socket_b = listen_at(b.socket);
  EXPECT_EQ(choose_agent({}).error().code, Errc::invalid_argument);
  EXPECT_EQ(*choose_agent({.cluster = "red"}), a);
  EXPECT_EQ(*choose_agent({.cluster = "id-blue"}), b);
  EXPECT_EQ(*choose_agent({.state_dir = b.state_dir + "/."}), b);
  EXPECT_EQ(choose_agent({.cluster = "green"}).error().code, Errc::not_found);
  ::setenv("HOLO_CLUSTER", "blue", 1);
  EXPECT_EQ(*choose_agent(AgentChoice::from_environment()), b);
}

TEST_F(AgentRegistry, DamagedRecordsArePassedOver) {
  ASSERT_TRUE(publish_agent(agent("c", "node1")));
  for (const char* text : {"", "garbage", "socket /x\n", "pid 99999999999999999999\nsocket \nnode_id 1\n"}) {
    ASSERT_TRUE(write_file_atomically(root_ + "/run/holo/agents/bad", as_bytes(text)));
    EXPECT_EQ(published_agents().size(), 1u) << text;
  }
  auto broken = agent("c", "node2");
  broken.node_name = "a\nb";
  EXPECT_EQ(publish_agent(broken).error().code, Errc::invalid_argument);
}

TEST_F(AgentRegistry, SocketsLieInTheRuntimeDirectoryOrInTheStateDirectory) {
  EXPECT_EQ(agent_socket_path("/s", "ab"), root_ + "/run/holo/agent-ab.sock");
  ::unsetenv("XDG_RUNTIME_DIR");
  EXPECT_EQ(agent_socket_path("/s", "ab"), "/s/agent.sock");
}

}  // namespace
}  // namespace holo::driver
