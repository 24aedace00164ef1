// The reference of `holo bench link` and `fetch`: ngtcp2 with as little around it as does the job. The same packets,
// AEAD, Noise handshake, key schedule, GSO and GRO as the hyperbus; but no exchange, no node, no event loop: one
// socket, poll(2), one stream per request, replies out of one buffer that never moves.
#pragma once

#include <netinet/in.h>
#include <ngtcp2/ngtcp2.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "cmd/holo/outcome.h"
#include "core/hyperbus/handshake.h"
#include "env/fd.h"

namespace holo::cmd::bare {

/// What a request says, as it lies in memory: how long the answer shall be.
struct Ask {
  std::uint64_t bytes = 0;
};

class Endpoint;

struct Stream {
  std::int64_t id = -1;
  Ask ask;
  std::size_t got = 0;     ///< Of the request, at a server; of the answer, at a client.
  std::uint64_t sent = 0;  ///< Of what this side says.
  bool ours = false, said = false;
  std::byte* into = nullptr;  ///< Where a client wants the answer.
  std::function<void()> done;
};

/// One connection. Thread: one.
class Connection {
 public:
  Connection(Endpoint& endpoint, std::optional<ngtcp2_pkt_hd> first, const sockaddr_in& remote);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  [[nodiscard]] bool established() const { return established_; }
  [[nodiscard]] bool failed() const { return failed_; }
  /// Asks for `bytes`; `into` has room for them, `done` is called when they are there.
  void request(std::uint64_t bytes, std::byte* into, std::function<void()> done);
  /// Sends whatever may be sent now.
  void flush();

 private:
  friend class Endpoint;
  friend struct Calls;
  int begin();
  int install_initial_keys(ByteSpan id);
  int on_crypto(ngtcp2_encryption_level level, ByteSpan bytes);
  int on_message(ByteSpan message);
  int submit(ngtcp2_encryption_level level, ByteSpan message);
  int install_keys(crypto::AeadAlgorithm aead, const hyperbus::TrafficSecret& send,
                   const hyperbus::TrafficSecret& receive, ngtcp2_encryption_level level);
  Result<Bytes> exchange(ByteSpan peer);
  int on_stream_data(Stream& stream, ByteSpan bytes, bool fin);
  ngtcp2_ssize write_packet(std::uint8_t* out, std::size_t room);
  void receive(ByteSpan datagram);
  void close();
  [[nodiscard]] ngtcp2_path path();

  Endpoint& endpoint_;
  const bool server_;
  sockaddr_in remote_;
  const std::size_t burst_limit_;
  ngtcp2_conn* conn_ = nullptr;
  ngtcp2_cid own_id_{};
  std::vector<std::uint64_t> ids_;
  hyperbus::Handshake handshake_;
  ngtcp2_encryption_level expects_ = NGTCP2_ENCRYPTION_LEVEL_INITIAL;
  Bytes message_;
  hyperbus::HandshakeResult agreed_;
  bool established_ = false, failed_ = false, touched_ = false;
  std::unordered_map<std::int64_t, std::unique_ptr<Stream>> streams_;
  std::deque<std::int64_t> to_say_;
  ngtcp2_tstamp now_ = 0;  ///< As ngtcp2 was told last.
};

/// A socket and its connections. Thread: one.
class Endpoint {
 public:
  struct Options {
    std::string listen;  ///< "address:port" of a server; empty: a client.
    std::size_t datagram_bytes = 0;
    bool poll = false;
  };
  static Outcome<std::unique_ptr<Endpoint>> open(const Options& options,
                                                 std::shared_ptr<const hyperbus::HandshakeConfig> handshake);
  ~Endpoint();
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;

  [[nodiscard]] std::string address() const;
  /// Runs until `over()`, or for `limit_ms`, or until `stop_fd` (if any) can be read. True when over.
  bool run(const std::function<bool()>& over, int limit_ms, int stop_fd = -1);
  Connection& dial(const sockaddr_in& remote);
  void close(Connection& connection);

 private:
  friend class Connection;
  friend struct Calls;
  Endpoint(const Options& options, std::shared_ptr<const hyperbus::HandshakeConfig> handshake);
  bool receive();
  Connection* find(const sockaddr_in& from, ByteSpan datagram);
  void send(const sockaddr_in& to, ByteSpan bytes, std::size_t segment);
  void on_time();
  [[nodiscard]] ngtcp2_tstamp next_timer() const;

  const Options options_;
  const std::shared_ptr<const hyperbus::HandshakeConfig> handshake_;
  env::Fd socket_;
  sockaddr_in local_{};
  Bytes received_, burst_;
  ngtcp2_tstamp now_ = 0;  ///< When what is being read arrived.
  std::unordered_map<std::uint64_t, Connection*> routes_;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::vector<Connection*> touched_;
};

Outcome<sockaddr_in> parse_address(const std::string& text);

}  // namespace holo::cmd::bare
