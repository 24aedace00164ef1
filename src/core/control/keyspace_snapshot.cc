// The keys as bytes, in one go or piece by piece, and back.
#include <algorithm>

#include "base/limits.h"
#include "base/strings.h"
#include "core/control/keyspace.h"

namespace holo::control {
namespace {

Status bad(const char* what) {
  return fail(Errc::corrupt, str("the snapshot of the control state is corrupt: ", what));
}

}  // namespace

void KeySpace::put_chain(const Chain& chain, wire::SnapshotKey* out) {
  const auto put = [&](const Record& r) {
    auto* record = out->add_records();
    record->set_revision(r.revision);
    record->set_created(r.created);
    record->set_version(r.version);
    record->set_order(r.order);
    record->set_value(r.value);
    record->set_lease(r.lease);
  };
  if (chain.older) {
    for (const Record& r : *chain.older) put(r);
  }
  put(chain.newest);
}

void KeySpace::save(wire::SnapshotKv* out) const {
  out->set_revision(revision_);
  out->set_compacted(compacted_);
  for (const auto& [name, chain] : keys_) {
    auto* key = out->add_keys();
    key->set_key(name);
    put_chain(chain, key);
  }
}

Status KeySpace::load(const wire::SnapshotKv& in) {
  HOLO_TRY(begin_load(in));
  HOLO_TRY(load_keys(in));
  end_load();
  return {};
}

Status KeySpace::begin_load(const wire::SnapshotKv& in) {
  if (in.compacted() > in.revision()) return bad("keys compacted beyond the newest");
  revision_ = in.revision();
  compacted_ = in.compacted();
  return {};
}

Status KeySpace::load_keys(const wire::SnapshotKv& in) {
  for (const wire::SnapshotKey& k : in.keys()) {
    if (k.key().empty() || k.key().size() > limits::kMaxKvKeyBytes || k.records().empty()) {
      return bad("a key that cannot be");
    }
    if (!keys_.empty() && k.key() <= keys_.rbegin()->first) return bad("keys out of order");
    const auto it = keys_.try_emplace(keys_.end(), k.key());
    for (const wire::SnapshotKvRecord& r : k.records()) {
      const bool forgotten = r.version() == 0 && r.revision() <= compacted_;
      if (forgotten || r.revision() <= it->second.newest.revision || r.revision() > revision_ ||
          r.value().size() > limits::kMaxKvValueBytes) {
        return bad("a key's records out of order, or too large");
      }
      write(it, {.revision = r.revision(),
                 .created = r.created(),
                 .version = r.version(),
                 .order = r.order(),
                 .lease = r.lease(),
                 .value = r.value()});
      changes_.pop_back();  // They come in the order of keys; end_load() has them in theirs.
      if (r.revision() > compacted_) loading_.push_back({r.revision(), r.order(), it});
    }
  }
  return {};
}

void KeySpace::end_load() {
  std::ranges::sort(loading_, [](const Ordered& a, const Ordered& b) {
    return a.revision != b.revision ? a.revision < b.revision : a.order < b.order;
  });
  for (const Ordered& o : loading_) changes_.push_back({o.revision, o.key});
  loading_ = {};
}

// ---- A cut

struct KeySpace::Frozen {
  bool begun = false;
  bool over = false;
  std::string position;  ///< Keys up to here have been read.
  /// Keys after it that have changed since, as they were; nullopt: was not there.
  std::map<std::string, std::optional<wire::SnapshotKey>, std::less<>> kept;
};

std::unique_ptr<KeySpace::Cut> KeySpace::cut() {
  frozen_ = std::make_shared<Frozen>();
  return std::make_unique<Cut>(*this, frozen_);
}

void KeySpace::preserve(const std::string& key, const Chain& chain) {
  if (!frozen_) return;
  Frozen& f = *frozen_;
  if (f.over) {
    frozen_.reset();
    return;
  }
  if (f.begun && key <= f.position) return;
  const auto [it, fresh] = f.kept.try_emplace(key);
  if (!fresh || chain.newest.revision == 0) return;
  it->second.emplace();
  it->second->set_key(key);
  put_chain(chain, &*it->second);
}

KeySpace::Cut::~Cut() { frozen_->over = true; }

Result<bool> KeySpace::Cut::next(std::size_t bytes, wire::SnapshotKv* out) {
  Frozen& f = *frozen_;
  if (keys_.frozen_ != frozen_) return fail(Errc::cancelled, "the keys were replaced while they were read");
  auto key = f.begun ? keys_.keys_.upper_bound(f.position) : keys_.keys_.begin();
  std::size_t taken = 0;
  while (taken < bytes) {
    const auto kept = f.kept.begin();
    const bool from_kept = kept != f.kept.end() && (key == keys_.keys_.end() || kept->first <= key->first);
    if (!from_kept && key == keys_.keys_.end()) break;
    f.position = from_kept ? kept->first : key->first;
    f.begun = true;
    if (!from_kept || kept->second) {
      auto* added = out->add_keys();
      if (from_kept) {
        added->Swap(&*kept->second);
      } else {
        added->set_key(key->first);
        put_chain(key->second, added);
      }
      for (const auto& r : added->records()) taken += r.value().size() + 40;
      taken += added->key().size();
    }
    if (key != keys_.keys_.end() && key->first == f.position) ++key;
    if (from_kept) f.kept.erase(kept);
  }
  return taken > 0;
}

}  // namespace holo::control
