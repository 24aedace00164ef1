// etcd's JSON interface (the gRPC gateway that every etcd v3 serves on its client port), over libcurl. Blocking.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "base/time.h"

namespace holo::driver::etcd {

/// How to speak to the cluster's etcd.
struct Endpoints {
  std::vector<std::string> urls;  ///< "http://host:2379" or "https://..."; tried in turn, the last that answered first.
  std::string ca_file;            ///< Of https; empty: the system's.
  std::string certificate_file;   ///< Of this client; empty: none.
  std::string key_file;
};

/// One connection, kept. Not copyable. Thread: one at a time, but for abort().
class Client {
 public:
  explicit Client(Endpoints endpoints);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  /// POSTs `body` to `path` ("/v3/kv/txn"). An endpoint that cannot be reached is followed by the next. Errors:
  /// `unavailable` (none answers; the effect is unknown), `deadline_exceeded`, `over_limit` (etcd's quota, or a request
  /// larger than it takes), `permission_denied`, `internal` (anything else that etcd says).
  Result<nlohmann::json> call(const std::string& path, const nlohmann::json& body, Duration timeout);

  /// POSTs `body` and calls `on_line` for each line of the answer, as it comes, until the connection ends. Errors: why
  /// it ended.
  Status stream(const std::string& path, const nlohmann::json& body, const std::function<void(std::string)>& on_line);

  /// What runs ends at once, and so does what begins later, with `cancelled` or `unavailable`. Thread: any.
  void abort();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// "http://127.0.0.1:2379,https://..." Errors: `invalid_argument`.
Result<std::vector<std::string>> parse_endpoints(const std::string& text);

/// Keys and values travel as base64, numbers as text.
std::string encode(ByteSpan bytes);
std::string encode(std::string_view text);
/// Errors: `malformed`.
Result<Bytes> decode(const nlohmann::json& object, const char* field);
/// 0 when it is not there: that is how etcd leaves out zeros.
std::uint64_t number(const nlohmann::json& object, const char* field);

}  // namespace holo::driver::etcd
