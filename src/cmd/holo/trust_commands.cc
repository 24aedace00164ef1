// holo trust ..., holo identity ..., holo key ...: whom this node believes, who it is, and the cluster's keys.
#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "base/strings.h"
#include "cmd/holo/agent_link.h"
#include "cmd/holo/command_line.h"
#include "cmd/holo/config.h"
#include "cmd/holo/state_dir.h"
#include "cmd/holo/table.h"
#include "driver/posix/os_entropy.h"

namespace holo::cmd {
namespace {

constexpr Duration kChangeLimit = seconds(20);
constexpr Duration kEverywhereLimit = seconds(70);
constexpr std::size_t kMaxTextFile = 16 << 10;

struct TrustOptions {
  TargetOptions target;
  std::string node, request, certificate, root_key, key, key_file;
  unsigned days = 0;
  bool json = false, everywhere = false;
};
using Shared = std::shared_ptr<TrustOptions>;

std::string text_at(const nlohmann::json& object, const char* key) { return object.value(key, std::string()); }

Outcome<nlohmann::json> ask(const TrustOptions& o, wire::LocalMessage type, const wire::TrustRequest& request,
                            Duration limit = kChangeLimit) {
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  HOLO_ASSIGN(answer, link.json(type, request, limit));
  return answer;
}

int print_json(const nlohmann::json& value) {
  std::cout << value.dump(2) << "\n";
  return kDone;
}

// ---- holo trust

Outcome<int> trust_list(const TrustOptions& o) {
  HOLO_ASSIGN(answer, ask(o, wire::TRUST_LIST, {}));
  if (o.json) return print_json(answer);
  std::cout << "trust mode " << text_at(answer, "trust") << "\n";
  if (const auto root = text_at(answer, "root"); !root.empty()) std::cout << "root key " << root << "\n";
  Table table({"NODE", "NAME", "KEY", "SINCE", "ADDRESS"});
  for (const auto& p : answer["pins"]) {
    table.row({p["node"], p["name"], p["key"], p["since"], p["kept"] ? text_at(p, "address") : "(not a member)"});
  }
  if (!answer["pins"].empty()) std::cout << table.text();
  for (const auto& r : answer["revoked"]) {
    std::cout << "revoked: " << text_at(r, "node") << " " << text_at(r, "name") << " " << text_at(r, "since") << "\n";
  }
  return kDone;
}

Outcome<int> trust_show(const TrustOptions& o) {
  HOLO_ASSIGN(answer, ask(o, wire::TRUST_LIST, {}));
  for (const char* list : {"revoked", "pins"}) {
    for (auto& entry : answer[list]) {
      if (entry["node"] != o.node && entry["name"] != o.node) continue;
      entry["revoked"] = std::string_view(list) == "revoked";
      if (o.json) return print_json(entry);
      for (const auto& [key, value] : entry.items()) {
        std::cout << key << ": " << (value.is_string() ? value.get<std::string>() : value.dump()) << "\n";
      }
      return kDone;
    }
  }
  return fail(
      Errc::not_found, str("node ", o.node, " is neither pinned nor revoked here"),
      text_at(answer, "trust") == "tofu" ? "holo trust list" : "only trust mode tofu pins nodes that have not rotated");
}

Outcome<int> trust_forget(const TrustOptions& o) {
  wire::TrustRequest request;
  request.set_node(o.node);
  HOLO_ASSIGN(answer, ask(o, wire::TRUST_FORGET, request));
  return o.json ? print_json(answer) : kDone;
}

// ---- holo identity

void print_identity(const nlohmann::json& i) {
  std::cout << "node         " << text_at(i, "node") << " " << text_at(i, "name") << "\n"
            << "key          " << text_at(i, "key") << "\n"
            << "noise static " << text_at(i, "noise_static") << "\n"
            << "trust mode   " << text_at(i, "trust") << ", " << text_at(i, "handshake") << "\n"
            << "rotations    " << i["rotations"].get<unsigned>() << " of " << hyperbus::kMaxChainLinks << "\n";
  if (const auto& c = i["certificate"]; !c.empty()) {
    std::cout << "certificate  issued " << text_at(c, "issued") << ", expires " << text_at(c, "expires")
              << (c["valid"] ? "" : ", NOT VALID") << "\n";
  }
}

Outcome<int> identity_show(const TrustOptions& o) {
  HOLO_ASSIGN(answer, ask(o, wire::IDENTITY_SHOW, {}));
  if (o.json) return print_json(answer);
  print_identity(answer);
  return kDone;
}

Outcome<int> identity_rotate(const TrustOptions& o) {
  HOLO_ASSIGN(answer, ask(o, wire::IDENTITY_ROTATE, {}));
  if (o.json) return print_json(answer);
  std::cout << text_at(answer, "key") << "\n";
  return kDone;
}

/// The state directory that an agent started here would use, or the one that was named.
Outcome<std::string> own_state_dir(const TrustOptions& o) {
  ConfigSources sources;
  if (!o.target.state_dir.empty()) sources.flags["state_dir"] = o.target.state_dir;
  HOLO_ASSIGN(loaded, load_config(sources));
  return loaded.config.state_dir;
}

/// Of the agent of that directory, or of the directory itself, where an identity is made if there is none.
Outcome<int> identity_request(const TrustOptions& o) {
  HOLO_ASSIGN(state_dir, own_state_dir(o));
  std::string request;
  if (auto link = AgentLink::connect(TargetOptions{.cluster = {}, .state_dir = state_dir, .node = {}})) {
    HOLO_ASSIGN(answer, link->json(wire::IDENTITY_SHOW));
    request = text_at(answer, "request");
  } else {
    HOLO_ASSIGN(state, StateDir::open(state_dir));
    HOLO_ASSIGN(identity, state.identity());
    request = hyperbus::request_text(identity.chain(), identity.sign(hyperbus::request_statement(identity.chain())));
  }
  if (o.json) return print_json({{"request", request}, {"state_dir", state_dir}});
  std::cout << request << "\n";
  return kDone;
}

/// `text` itself, or what the file or standard input that it names contains.
Outcome<std::string> given(const std::string& text, const char* what) {
  std::string out = text;
  if (text == "-") {
    if (!std::getline(std::cin, out)) return usage(str("no ", what, " on standard input"));
  } else if (text.size() < 4096 && driver::file_exists(text)) {
    auto read = driver::read_text_file(text, kMaxTextFile);
    if (!read) return usage(read.error().message);
    out = *read;
  }
  return out;
}

Outcome<int> identity_sign(const TrustOptions& o) {
  HOLO_ASSIGN(text, given(o.request, "request"));
  const auto chain = hyperbus::parse_request(text);
  if (!chain && chain.error().code == Errc::malformed) return usage(chain.error());
  if (!chain) return std::unexpected(chain.error());
  std::string file = o.root_key;
  if (file.empty()) {
    HOLO_ASSIGN(state_dir, own_state_dir(o));
    file = state_dir + "/root.key";
  }
  HOLO_ASSIGN(root, read_root_key(file));
  const auto certificate = sign_identity(root, *chain, seconds(std::int64_t{o.days} * 86'400));
  if (o.json) {
    const auto carried = hyperbus::parse_certificate(certificate);
    const WallTime expires = carried->certificate.expires;
    return print_json({{"certificate", certificate},
                       {"node", to_hex(carried->node.value)},
                       {"root", hyperbus::public_key_text(root.public_key())},
                       {"expires", expires.ms == 0 ? "never" : hyperbus::utc_text(expires)}});
  }
  std::cout << certificate << "\n";
  return kDone;
}

Outcome<int> identity_install(const TrustOptions& o) {
  wire::TrustRequest request;
  HOLO_ASSIGN(text, given(o.certificate, "certificate"));
  const auto carried = hyperbus::parse_certificate(text);
  if (!carried && carried.error().code == Errc::malformed) return usage(carried.error());
  request.set_certificate(text);
  HOLO_ASSIGN(answer, ask(o, wire::IDENTITY_INSTALL, request));
  return o.json ? print_json(answer) : kDone;
}

Outcome<int> identity_revoke(const TrustOptions& o) {
  wire::TrustRequest request;
  request.set_node(o.node);
  HOLO_ASSIGN(answer, ask(o, wire::IDENTITY_REVOKE, request));
  return o.json ? print_json(answer) : kDone;
}

// ---- holo key

Outcome<int> key_list(const TrustOptions& o) {
  HOLO_ASSIGN(answer, ask(o, wire::KEY_LIST, {}));
  if (o.json) return print_json(answer);
  for (const auto& key : answer["keys"]) {
    std::cout << text_at(key, "id") << (key["in_use"] ? "  in use" : "  accepted") << "\n";
  }
  return kDone;
}

Outcome<int> change_key(const TrustOptions& o, wire::TrustRequest& request, nlohmann::json more = {}) {
  request.set_everywhere(o.everywhere);
  HOLO_ASSIGN(answer, ask(o, wire::KEY_CHANGE, request, o.everywhere ? kEverywhereLimit : kChangeLimit));
  std::string failed;
  for (const auto& node : answer["nodes"]) {
    if (node["done"]) continue;
    failed += str(failed.empty() ? "" : "; ", text_at(node, "name"), ": ", text_at(node, "error"));
  }
  if (!failed.empty()) return fail(Errc::refused, "not done everywhere: " + failed, "the same command again is safe");
  if (o.json) {
    answer.update(more);
    return print_json(answer);
  }
  if (more.contains("secret")) std::cout << text_at(more, "secret") << "\n";
  std::cout << text_at(answer, "key") << "\n";
  return kDone;
}

Outcome<int> key_add(const TrustOptions& o) {
  if (!o.key.empty() && !o.key_file.empty()) return usage("a key and --key-file are both given", "give one of them");
  ClusterKey key;
  nlohmann::json more = nlohmann::json::object();
  if (o.key.empty() && o.key_file.empty()) {
    driver::OsEntropy entropy;
    key = crypto::random_secret<32>(entropy);
    more["secret"] = key_text(key);
  } else {
    HOLO_ASSIGN(text, given(o.key.empty() ? o.key_file : o.key, "key"));
    auto parsed = parse_key(text);
    if (!parsed) return usage(parsed.error());
    key = *parsed;
  }
  wire::TrustRequest request;
  request.mutable_change()->set_kind(wire::KeyChange::ADD);
  request.mutable_change()->set_key(key.span().data(), key.span().size());
  return change_key(o, request, more);
}

Outcome<int> key_named(const TrustOptions& o, wire::KeyChange::Kind kind) {
  wire::TrustRequest request;
  const auto id = parse_key_id(o.key);
  if (!id) return usage(id.error());
  request.mutable_change()->set_kind(kind);
  request.mutable_change()->set_key_id(*id);
  return change_key(o, request);
}

}  // namespace

void add_trust_commands(CommandLine& line) {
  const auto add = [&](CLI::App& group, const char* name, const char* help, const char* example,
                       Outcome<int> (*run)(const TrustOptions&)) -> std::pair<CLI::App*, Shared> {
    auto o = std::make_shared<TrustOptions>();
    auto& app = line.add(group, name, help, example, [o, run] { return run(*o); });
    add_target_options(app, o->target);
    app.add_flag("--json", o->json, "One JSON object");
    return {&app, o};
  };
  const auto add_node = [&](CLI::App& group, const char* name, const char* help, const char* example,
                            Outcome<int> (*run)(const TrustOptions&)) {
    const auto [app, o] = add(group, name, help, example, run);
    app->add_option("NODE", o->node, "A node's name or id")->required();
  };

  auto& trust =
      line.add(line.root(), "trust", "Whose keys this node has pinned, and who was revoked", "holo trust list", {});
  add(trust, "list", "Every pin and every revocation", "holo trust list --json", trust_list);
  add_node(trust, "show", "One of them", "holo trust show node2", trust_show);
  add_node(trust, "forget", "Drop a pin: the next key which that node shows is believed", "holo trust forget node2",
           trust_forget);
  add(trust, "rotate", "Give this node a new key, signed by the old one (as holo identity rotate)", "holo trust rotate",
      identity_rotate);

  auto& identity =
      line.add(line.root(), "identity", "Who this node is, and who vouches for it", "holo identity show", {});
  add(identity, "show", "This node's id, keys and certificate", "holo identity show", identity_show);
  add(identity, "request", "What to bring to holo identity sign; makes this machine's identity if there is none",
      "holo identity request --state-dir /var/lib/holo", identity_request);
  const auto [sign, s] = add(identity, "sign", "Sign a request with the cluster's root key; prints the certificate",
                             "holo identity sign REQUEST --days 365", identity_sign);
  sign->add_option("REQUEST", s->request, "What holo identity request printed; a file of it; - is standard input")
      ->required();
  sign->add_option("--root-key", s->root_key, "The root key's file (default: root.key in the state directory)");
  sign->add_option("--days", s->days, "Valid for so long (default: for ever)")->check(CLI::Range(1u, 36500u));
  const auto [install, n] = add(identity, "install", "Give the running agent another certificate",
                                "holo identity install CERTIFICATE", identity_install);
  install
      ->add_option("CERTIFICATE", n->certificate, "What holo identity sign printed; a file of it; - is standard input")
      ->required();
  add(identity, "rotate", "Give this node a new key, signed by the old one; it stays the same node",
      "holo identity rotate", identity_rotate);
  add_node(identity, "revoke", "Shut a node out of the cluster, for good and everywhere", "holo identity revoke node3",
           identity_revoke);

  auto& key = line.add(line.root(), "key", "The cluster's keys: two are valid at once while one replaces the other",
                       "holo key add --all", {});
  const auto everywhere = [](CLI::App& app, const Shared& o) {
    app.add_flag("--all", o->everywhere, "At every live node, over encrypted links; without it, at this node only");
  };
  add(key, "list", "The ids of the keys that this node accepts", "holo key list", key_list);
  const auto [add_app, a] = add(key, "add", "Accept another key, given or new (then it is printed); prints its id",
                                "holo key add --all", key_add);
  add_app->add_option("KEY", a->key, "base64 of 32 bytes (default: a new one)");
  add_app->add_option("--key-file", a->key_file, "Read the key from this file, - is standard input");
  everywhere(*add_app, a);
  const auto [use_app, u] = add(key, "use", "Dial with this key from now on", "holo key use 16f06c5dbcd040fe --all",
                                [](const TrustOptions& o) { return key_named(o, wire::KeyChange::USE); });
  use_app->add_option("ID", u->key, "As holo key list shows it")->required();
  everywhere(*use_app, u);
  const auto [remove_app, r] =
      add(key, "remove", "Refuse this key from now on", "holo key remove 16f06c5dbcd040fe --all",
          [](const TrustOptions& o) { return key_named(o, wire::KeyChange::REMOVE); });
  remove_app->add_option("ID", r->key, "As holo key list shows it")->required();
  everywhere(*remove_app, r);
}

}  // namespace holo::cmd
