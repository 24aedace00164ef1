#include "cmd/holo/config.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace holo::cmd {
namespace {

using Origin = Setting::Origin;

class Config : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/holo-config-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    root_ = name;
    for (const auto& info : setting_table()) ::unsetenv(info.variable);
    ::unsetenv("HOLO_CONFIG");
    ::setenv("XDG_STATE_HOME", (root_ + "/xdg-state").c_str(), 1);
    ::setenv("XDG_CONFIG_HOME", (root_ + "/xdg-config").c_str(), 1);
  }
  void TearDown() override {
    for (const auto& info : setting_table()) ::unsetenv(info.variable);
    std::filesystem::remove_all(root_);
  }
  std::string write(const std::string& name, const std::string& text) {
    const auto path = root_ + "/" + name;
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::ofstream(path) << text;
    return path;
  }
  static Setting find(const LoadedConfig& loaded, const std::string& key) {
    return *std::ranges::find(loaded.settings, key, &Setting::key);
  }
  std::string root_;
};

TEST_F(Config, FlagBeatsEnvironmentBeatsFileBeatsDefault) {
  const auto file = write("a.toml", "memory = \"1GiB\"\nworkers = 3\nname = \"from-file\"\n");
  ::setenv("HOLO_WORKERS", "4", 1);
  ::setenv("HOLO_NAME", "from-environment", 1);
  const auto loaded = load_config({.flags = {{"name", "from-flag"}}, .config_file = file});
  ASSERT_TRUE(loaded) << loaded.error().error.message;
  EXPECT_EQ(loaded->config.memory_bytes, 1u << 30);
  EXPECT_EQ(loaded->config.workers, 4u);
  EXPECT_EQ(loaded->config.name, "from-flag");
  EXPECT_EQ(loaded->config.userfaultfd, "auto");
  EXPECT_EQ(find(*loaded, "memory").origin, Origin::file);
  EXPECT_EQ(find(*loaded, "memory").where, file);
  EXPECT_EQ(find(*loaded, "workers").origin, Origin::environment);
  EXPECT_EQ(find(*loaded, "name").origin, Origin::flag);
  EXPECT_EQ(find(*loaded, "listen").origin, Origin::default_value);
  const auto json = nlohmann::json::parse(config_json(*loaded));
  EXPECT_EQ(json["file"], file);
  EXPECT_EQ(json["settings"].size(), setting_table().size());
}

TEST_F(Config, WhatFlagsSayWithCommasMayBeAnArray) {
  const auto file = write("etcd.toml",
                          "labels = [\"gpu=yes\", \"room=3\"]\n[control]\nstore = \"etcd\"\n"
                          "endpoints = [\"http://a:2379\", \"http://b:2379\"]\n");
  const auto loaded = load_config({.flags = {}, .config_file = file});
  ASSERT_TRUE(loaded) << loaded.error().error.message;
  EXPECT_EQ(loaded->config.control_endpoints, (std::vector<std::string>{"http://a:2379", "http://b:2379"}));
  EXPECT_EQ(find(*loaded, "labels").value, "gpu=yes,room=3");
}

TEST_F(Config, TheStateDirectorysFileIsFoundBeforeThePersons) {
  write("xdg-config/holo/config.toml", "name = \"person\"\n");
  EXPECT_EQ(load_config({})->config.name, "person");
  write("state/config.toml", "name = \"node7\"\n");
  EXPECT_EQ(load_config({.flags = {{"state_dir", root_ + "/state"}}, .config_file = {}})->config.name, "node7");
}

TEST_F(Config, WhatIsWrittenIsReadBack) {
  const auto path = root_ + "/c.toml";
  ASSERT_TRUE(write_config_file(path, {{"name", "n-1"}, {"log_file", "/x/\"quoted\" \\ back"}}));
  const auto loaded = load_config({.flags = {}, .config_file = path});
  ASSERT_TRUE(loaded);
  EXPECT_EQ(loaded->config.name, "n-1");
  EXPECT_EQ(loaded->config.log_file, "/x/\"quoted\" \\ back");
  EXPECT_FALSE(write_config_file(path, {{"name", "a\nb"}}));
}

TEST_F(Config, BadFilesAreOneClearErrorAndNoUsage) {
  struct Case {
    const char* text;
    Errc code;
  };
  for (const auto& [text, code] : {
           Case{"memory = \"1GiB", Errc::malformed},                                               // half-written
           Case{"memory = ", Errc::malformed}, Case{"memroy = \"1GiB\"", Errc::invalid_argument},  // unknown key
           Case{"[memory]\nlimit = 1", Errc::invalid_argument}, Case{"memory = true", Errc::invalid_argument},
           Case{"memory = \"lots\"", Errc::invalid_argument}, Case{"memory = -5", Errc::invalid_argument},
           Case{"workers = 0", Errc::invalid_argument}, Case{"listen = \"8443\"", Errc::invalid_argument},
           Case{"userfaultfd = \"maybe\"", Errc::invalid_argument},
           Case{"advertise = \"0.0.0.0:8443\"", Errc::invalid_argument}, Case{"name = \"a b\"", Errc::invalid_argument},
           Case{"name = [\"a\"]", Errc::invalid_argument}, Case{"labels = [1]", Errc::invalid_argument},
           Case{"labels = [\"a=b,c=d\"]", Errc::invalid_argument},
           Case{"listen = \"0.0.0.0:0\"\nadvertise = \"host:8443\"", Errc::invalid_argument},  // contradictory
       }) {
    const auto loaded = load_config({.flags = {}, .config_file = write("bad.toml", text)});
    ASSERT_FALSE(loaded) << text;
    EXPECT_EQ(loaded.error().error.code, code) << text << ": " << loaded.error().error.message;
    EXPECT_EQ(loaded.error().exit_code, kFailed) << text;
    EXPECT_EQ(loaded.error().error.message.find('\n'), std::string::npos) << text;
  }
  EXPECT_FALSE(load_config({.flags = {}, .config_file = root_})) << "a directory";
  EXPECT_FALSE(load_config({.flags = {}, .config_file = root_ + "/missing"}));
}

TEST_F(Config, AFlagThatDoesNotParseIsUsage) {
  const auto loaded = load_config({.flags = {{"memory", "lots"}}, .config_file = {}});
  ASSERT_FALSE(loaded);
  EXPECT_EQ(loaded.error().exit_code, kUsage);
}

TEST_F(Config, AFileInOneStateDirectoryCannotNameAnother) {
  write("state/config.toml", "state_dir = \"/elsewhere\"\n");
  const ConfigSources sources{.flags = {}, .config_file = root_ + "/state/config.toml"};
  EXPECT_TRUE(load_config(sources)) << "given by hand, it may say so";
  ::setenv("HOLO_STATE_DIR", (root_ + "/state").c_str(), 1);
  EXPECT_TRUE(load_config({})) << "the environment wins over it";
  ::unsetenv("HOLO_STATE_DIR");
  ::setenv("XDG_STATE_HOME", (root_ + "/x").c_str(), 1);
  write("x/holo/config.toml", "state_dir = \"/elsewhere\"\n");
  EXPECT_FALSE(load_config({}));
}

}  // namespace
}  // namespace holo::cmd
