// The inside of TrustService, shared by its two files. Coroutines hold the Impl and look at `stopped` after each wait.
#pragma once

#include "node/trust.h"

namespace holo::node {

/// Asked within handshakes. Apart from Impl, because session configurations hold it, and Impl holds those.
struct TrustGate final : hyperbus::TrustPolicy {
  TrustGate(env::Loop& l, hyperbus::TrustBook b) : loop(l), book(std::move(b)) {}
  hyperbus::TrustDecision decide(const hyperbus::PresentedIdentity& who) override;

  env::Loop& loop;
  hyperbus::TrustBook book;
  std::function<void()> changed;  ///< Pins have to be written.
};

struct TrustService::Impl final : control::StateObserver, std::enable_shared_from_this<Impl> {
  using Self = std::shared_ptr<Impl>;
  Impl(Ports p, TrustConfig config, std::shared_ptr<const hyperbus::SessionConfig> base, ClusterId cluster);

  // ---- control::StateObserver
  void on_commit(RegionId, Version, TxnId, std::span<const control::PageRange>) override {}
  void on_region_created(RegionId) override {}
  void on_region_freed(RegionId) override {}
  void on_nodes_changed(Epoch, NodeId) override { look_soon(); }
  void on_placement_changed(RegionId) override {}
  void on_restored() override { look_soon(); }

  // ---- Following the cluster (trust.cc)
  void load_revoked(ClusterId cluster);
  Status save_revoked();
  void look_soon();
  void look();
  void on_connected(NodeId node);
  void confirm(NodeId node, const std::string& address);
  void save_pins_soon();
  [[nodiscard]] bool is_member(NodeId node) const;

  // ---- Changing (trust.cc). Each is kept before it is used.
  void use(hyperbus::HandshakeConfig handshake);
  Status rotate();
  Status install(const std::string& certificate);
  Status change_key(const wire::KeyChange& change);
  Status add_key(const wire::KeyChange& change);
  Status keep_keys(std::vector<crypto::Secret<32>> next);
  [[nodiscard]] std::optional<std::size_t> key_at(std::uint64_t id) const;
  [[nodiscard]] Status can_change() const;

  // ---- What the command line asks (trust_local.cc)
  void serve_local(LocalApi& api);
  [[nodiscard]] std::string name_of(NodeId node) const;
  [[nodiscard]] Result<NodeId> resolve(const std::string& text) const;
  [[nodiscard]] std::string list_json() const;
  [[nodiscard]] std::string identity_json() const;
  [[nodiscard]] std::string keys_json() const;
  static Task<Result<std::string>> revoke(Self me, NodeId node);
  static Task<Result<std::string>> change_keys(Self me, wire::TrustRequest request);
  static Task<Result<env::Reply>> on_key_change(Self me, NodeId from, env::Request request);
  void serve_peers();

  Ports ports;
  std::shared_ptr<TrustStore> store;
  std::shared_ptr<TrustGate> gate;
  std::vector<crypto::Secret<32>> keys;
  std::string certificate;
  std::shared_ptr<const hyperbus::SessionConfig> session;
  ClusterId revoked_in;  ///< The cluster that gate->book.revoked() is of.
  Bus* bus = nullptr;
  ControlService* control = nullptr;
  bool look_posted = false;
  bool save_posted = false;
  bool stopped = false;
};

}  // namespace holo::node
