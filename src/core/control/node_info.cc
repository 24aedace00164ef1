#include "core/control/node_info.h"

#include <algorithm>
#include <cctype>

#include "base/strings.h"
#include "core/control/shape.h"
#include "core/control/state.h"

namespace holo::control {
namespace {

constexpr std::uint64_t kMaxNodeMemory = 1ULL << 50;  // So that sums over kMaxNodes stay in 64 bits.
constexpr std::size_t kMaxNodeName = 128;
constexpr int kMaxAddresses = 16;
constexpr std::size_t kMaxAddress = 300;

bool plain(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '.' || c == '_' || c == '-' || c == '/' || c == ':';
}

}  // namespace

Status check_label_text(std::string_view what, std::string_view text) {
  if (text.size() <= kMaxLabelText && !text.empty() && std::isalnum(static_cast<unsigned char>(text[0])) != 0 &&
      std::all_of(text.begin(), text.end(), plain)) {
    return {};
  }
  return fail(Errc::invalid_argument, str("\"", text.substr(0, kMaxLabelText), "\" cannot be ", what),
              str("1 to ", kMaxLabelText, " of A-Z a-z 0-9 . _ / : -, beginning with a letter or digit"));
}

Status check_place(const NodePlace& place) {
  if (!place.zone.empty()) HOLO_TRY(check_label_text("a zone", place.zone));
  if (!place.host.empty()) HOLO_TRY(check_label_text("a host", place.host));
  if (!place.rack.empty()) HOLO_TRY(check_label_text("a rack", place.rack));
  if (place.labels.size() > kMaxLabels) {
    return fail(Errc::invalid_argument, str("a node has at most ", kMaxLabels, " labels"));
  }
  for (std::size_t i = 0; i < place.labels.size(); ++i) {
    const NodeLabel& label = place.labels[i];
    HOLO_TRY(check_label_text("a label's key", label.key));
    if (!label.value.empty()) HOLO_TRY(check_label_text("a label's value", label.value));
    if (i > 0 && label.key <= place.labels[i - 1].key) {
      return fail(Errc::invalid_argument, str("label ", label.key, " is there twice, or out of order"));
    }
  }
  return {};
}

NodePlace place_of(const wire::NodeInfo& info) {
  NodePlace out{.zone = info.zone(), .host = info.host(), .rack = info.rack(), .labels = {}};
  for (const wire::NodeLabel& l : info.labels()) out.labels.push_back({.key = l.key(), .value = l.value()});
  return out;
}

void set_place(const NodePlace& place, wire::NodeInfo* out) {
  out->set_zone(place.zone);
  out->set_host(place.host);
  out->set_rack(place.rack);
  out->clear_labels();
  for (const NodeLabel& l : place.labels) {
    wire::NodeLabel* label = out->add_labels();
    label->set_key(l.key);
    label->set_value(l.value);
  }
}

Status check_info(const wire::NodeInfo& info) {
  if (info.id() == 0) return fail(Errc::invalid_argument, "a node without an id");
  if (info.name().size() > kMaxNodeName || info.version().size() > kMaxNodeName) {
    return fail(Errc::invalid_argument, str("a node name or version longer than ", kMaxNodeName, " bytes"));
  }
  if (info.memory_bytes() > kMaxNodeMemory) {
    return fail(Errc::invalid_argument, str("a node with ", human_bytes(info.memory_bytes()), " of memory"));
  }
  if (info.addresses_size() > kMaxAddresses) return fail(Errc::invalid_argument, "a node with too many addresses");
  for (const std::string& a : info.addresses()) {
    if (a.size() > kMaxAddress) return fail(Errc::invalid_argument, "a node address that is too long");
  }
  if (static_cast<std::size_t>(info.labels_size()) > kMaxLabels) {
    return fail(Errc::invalid_argument, str("a node has at most ", kMaxLabels, " labels"));
  }
  return check_place(place_of(info));
}

void set_info(NodeRecord& n, const wire::NodeInfo& info) {
  n.id = NodeId{info.id()};
  n.name = info.name();
  n.addresses.assign(info.addresses().begin(), info.addresses().end());
  n.cores = info.cores();
  n.memory_bytes = info.memory_bytes();
  n.speed = info.speed();
  n.version = info.version();
  n.place = place_of(info);
}

wire::NodeInfo info_of(const NodeRecord& n) { return info_from(n, n.incarnation); }

bool same_facts(const NodeRecord& known, const wire::NodeInfo& said) {
  return known.name == said.name() && known.memory_bytes == said.memory_bytes() && known.cores == said.cores() &&
         known.version == said.version() && known.place == place_of(said) &&
         std::equal(known.addresses.begin(), known.addresses.end(), said.addresses().begin(), said.addresses().end());
}

}  // namespace holo::control
