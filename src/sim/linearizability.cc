#include "sim/linearizability.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <tuple>
#include <unordered_set>

#include "base/random.h"
#include "base/strings.h"

namespace holo::sim {
namespace {

using Kind = Operation::Kind;

constexpr std::string_view kNil = "nil";
constexpr std::string_view kKinds[] = {"get", "put", "cas", "del", "acquire", "release"};

/// An operation with its values as numbers; 0: nothing.
struct Step {
  const Operation* op = nullptr;
  std::int64_t begin = 0, end = 0;
  Kind kind = Kind::get;
  std::uint64_t value = 0, expected = 0, token = 0;
  bool done = true;
  bool open = false;        ///< Without an answer.
  std::uint64_t group = 0;  ///< Open steps of one group differ in nothing but their beginnings. 0: of none.
};

/// What the single copy knows: of a key its value; of a lock who has it (its token), and the highest token so far.
struct Model {
  std::uint64_t value = 0;
  std::uint64_t highest = 0;
  friend bool operator==(const Model&, const Model&) = default;
};

/// The state after the step; nullopt when it cannot have been answered so here.
std::optional<Model> apply(Model m, const Step& s) {
  switch (s.kind) {
    case Kind::get:
      if (m.value != s.value) return std::nullopt;
      return m;
    case Kind::put: m.value = s.value; return m;
    case Kind::cas:
      if (!s.open && s.done != (m.value == s.expected)) return std::nullopt;
      if (m.value == s.expected) m.value = s.value;
      return m;
    case Kind::del:
      if (!s.open && s.done != (m.value != 0)) return std::nullopt;
      m.value = 0;
      return m;
    case Kind::acquire:
      if (m.value != 0 || s.token <= m.highest) return std::nullopt;
      return Model{.value = s.token, .highest = s.token};
    case Kind::release:
      if (!s.open && s.done != (m.value == s.token)) return std::nullopt;
      if (m.value == s.token) m.value = 0;
      return m;
  }
  return std::nullopt;
}

/// Whatever it finds, it changes nothing.
bool reads_only(const Step& s) {
  return s.kind == Kind::get ||
         (!s.open && !s.done && (s.kind == Kind::cas || s.kind == Kind::del || s.kind == Kind::release));
}

/// The search over the operations of one key.
class Search {
 public:
  Search(std::vector<Step> steps, std::uint64_t max_steps) : steps_(std::move(steps)), max_steps_(max_steps) {
    taken_.resize((steps_.size() + 63) / 64);
    link();
  }

  /// Steps with an answer are tried first, those without one only when nothing else will do.
  Verdict::Kind run() {
    Model model;
    bool open = false;
    std::size_t at = events_[0].next;
    while (at != 0) {
      if (++tried_ > max_steps_) return Verdict::Kind::undecided;
      const Event& e = events_[at];
      const Step& s = steps_[e.step];
      if (!e.is_answer) {
        const auto next = s.open == open && first_of_group(e.step) ? apply(model, s) : std::nullopt;
        // Without an answer and without an effect: left for later, when it may have one.
        if (next && !(s.open && *next == model) && remember(e.step, *next)) {
          order_.push_back({at, model, open, reads_only(s)});
          model = *next;
          lift(at);
          open = false;
          at = events_[0].next;
        } else {
          at = e.next;
        }
        continue;
      }
      if (s.open) return Verdict::Kind::linearizable;  // Only what may never happen is left.
      if (!std::exchange(open, true)) {
        at = events_[0].next;
        continue;
      }
      // Whoever is answered here has had its effect by now: something before it went wrong.
      if (order_.size() >= longest_) {
        longest_ = order_.size();
        stuck_ = e.step;
      }
      // What changed nothing was rightly taken at once: there is no need to try without it.
      bool changed = false;
      while (!changed) {
        if (order_.empty()) return Verdict::Kind::violated;
        const Taken back = order_.back();
        order_.pop_back();
        model = back.before;
        forget(events_[back.call].step);
        put_back(back.call);
        at = events_[back.call].next;
        open = back.open;
        changed = !back.pure;
      }
    }
    return Verdict::Kind::linearizable;
  }

  [[nodiscard]] std::uint64_t tried() const { return tried_; }
  [[nodiscard]] const Operation* stuck() const { return steps_[stuck_].op; }

 private:
  struct Event {
    std::size_t step = 0;
    bool is_answer = false;
    std::size_t previous = 0, next = 0;
    std::size_t answer = 0;  ///< Of a call.
  };

  /// Of steps that are alike, the one that began first will do: whatever a later one explains, it explains too.
  [[nodiscard]] bool first_of_group(std::size_t step) const {
    if (steps_[step].group == 0) return true;
    for (std::size_t i = 0; i < steps_.size(); ++i) {
      if (i == step || steps_[i].group != steps_[step].group) continue;
      const bool earlier = std::pair(steps_[i].begin, i) < std::pair(steps_[step].begin, step);
      if (earlier && (taken_[i / 64] >> (i % 64) & 1) == 0) return false;
    }
    return true;
  }

  void link() {
    struct Point {
      std::int64_t when;
      bool is_answer;
      std::size_t step;
    };
    std::vector<Point> points;
    for (std::size_t i = 0; i < steps_.size(); ++i) {
      points.push_back({steps_[i].begin, false, i});
      points.push_back({steps_[i].end, true, i});
    }
    // At one instant calls come before answers: then the two overlap, and either order will do.
    std::ranges::stable_sort(points, [](const Point& a, const Point& b) {
      return std::pair(a.when, a.is_answer) < std::pair(b.when, b.is_answer);
    });
    events_.resize(points.size() + 1);
    std::vector<std::size_t> call(steps_.size());
    for (std::size_t i = 0; i < points.size(); ++i) {
      Event& e = events_[i + 1];
      e = {.step = points[i].step, .is_answer = points[i].is_answer, .previous = i, .next = i + 2};
      if (e.is_answer) {
        events_[call[e.step]].answer = i + 1;
      } else {
        call[e.step] = i + 1;
      }
    }
    events_.back().next = 0;
    events_[0].next = points.empty() ? 0 : 1;
  }
  void unlink(std::size_t i) {
    events_[events_[i].previous].next = events_[i].next;
    if (events_[i].next != 0) events_[events_[i].next].previous = events_[i].previous;
  }
  void relink(std::size_t i) {
    events_[events_[i].previous].next = i;
    if (events_[i].next != 0) events_[events_[i].next].previous = i;
  }
  void lift(std::size_t call) {
    unlink(call);
    unlink(events_[call].answer);
  }
  void put_back(std::size_t call) {
    relink(events_[call].answer);
    relink(call);
  }
  /// False when this set of operations has led to this state before.
  bool remember(std::size_t step, const Model& model) {
    taken_[step / 64] |= 1ULL << (step % 64);
    Seen seen{taken_, model};
    if (seen_.insert(std::move(seen)).second) return true;
    forget(step);
    return false;
  }
  void forget(std::size_t step) { taken_[step / 64] &= ~(1ULL << (step % 64)); }

  struct Seen {
    std::vector<std::uint64_t> taken;
    Model model;
    friend bool operator==(const Seen&, const Seen&) = default;
  };
  struct Hash {
    std::size_t operator()(const Seen& s) const {
      std::uint64_t h = mix64(s.model.value) ^ mix64(s.model.highest + 1);
      for (const std::uint64_t w : s.taken) h = mix64(h ^ w);
      return h;
    }
  };

  std::vector<Step> steps_;
  std::uint64_t max_steps_;
  std::vector<Event> events_;
  std::vector<std::uint64_t> taken_;
  struct Taken {
    std::size_t call = 0;
    Model before;
    bool open = false;  ///< It was taken from those without an answer.
    bool pure = false;
  };
  std::vector<Taken> order_;
  std::unordered_set<Seen, Hash> seen_;
  std::uint64_t tried_ = 0;
  std::size_t longest_ = 0;
  std::size_t stuck_ = 0;
};

/// The operations of one key as steps. Values of unanswered writes that nobody read and no successful comparison met
/// are one value: without that many unanswered writes would have to be tried in every order. (A comparison that failed
/// against one of them is then believed.)
std::vector<Step> steps_of(const std::vector<const Operation*>& ops) {
  std::map<std::string, std::uint64_t, std::less<>> numbers{{std::string(kNil), 0}};
  const auto number_of = [&](const std::string& v) {
    return v.empty() ? 0 : numbers.try_emplace(v, numbers.size()).first->second;
  };
  std::set<std::string_view> seen;
  std::set<std::uint64_t> released;
  for (const Operation* op : ops) {
    const bool answered = op->end != Operation::kNeverEnded;
    if (op->kind == Kind::get && answered) seen.insert(op->value);
    if (op->kind == Kind::cas && (!answered || op->done)) seen.insert(op->expected);
    if (op->kind == Kind::release && answered && op->done) released.insert(op->token);
  }
  constexpr std::uint64_t kUnseen = UINT64_MAX;
  std::map<std::pair<Kind, std::uint64_t>, std::uint64_t> groups;
  std::vector<Step> out;
  for (const Operation* op : ops) {
    const bool open = op->end == Operation::kNeverEnded;
    if (open && (op->kind == Kind::get || op->kind == Kind::acquire)) continue;
    if (op->kind == Kind::acquire && !op->done) continue;
    const bool writes = op->kind == Kind::put || op->kind == Kind::cas;
    const bool unseen = open && writes && !seen.contains(op->value);
    Step s{.op = op,
           .begin = op->begin,
           .end = op->end,
           .kind = op->kind,
           .value = unseen ? kUnseen : number_of(op->value),
           .expected = number_of(op->expected),
           .token = op->token,
           .done = op->done,
           .open = open,
           .group = 0};
    if (open && (unseen || op->kind == Kind::del)) {
      s.group = groups.try_emplace({op->kind, s.expected}, groups.size() + 1).first->second;
    }
    out.push_back(s);
    if (op->kind == Kind::acquire && !released.contains(op->token)) {  // Its lease may end at any time.
      Step lost = out.back();
      lost.kind = Kind::release;
      lost.end = Operation::kNeverEnded;
      lost.open = true;
      out.push_back(lost);
    }
  }
  return out;
}

}  // namespace

bool explained_by_revisions(const std::vector<Operation>& of_one_key) {
  std::vector<const Operation*> ops;
  for (const Operation& op : of_one_key) {
    const bool open = op.end == Operation::kNeverEnded;
    if (open && (op.revision == 0 || op.kind == Kind::get)) continue;
    if (op.kind == Kind::acquire || op.kind == Kind::release) return false;  // They name none.
    ops.push_back(&op);
  }
  std::vector<Step> steps = steps_of(ops);
  std::ranges::stable_sort(steps, {}, [](const Step& s) { return std::tuple(s.op->revision, reads_only(s), s.begin); });
  Model model;
  std::int64_t latest_call = INT64_MIN;
  for (const Step& s : steps) {
    if (s.end < latest_call) return false;  // It was answered before something was asked that stands before it.
    latest_call = std::max(latest_call, s.begin);
    const auto next = apply(model, s);
    if (!next) return false;
    model = *next;
  }
  return true;
}

namespace {

bool number(std::string_view text, auto& out) {
  const auto r = std::from_chars(text.data(), text.data() + text.size(), out);
  return r.ec == std::errc{} && r.ptr == text.data() + text.size();
}

std::vector<std::string_view> words_of(std::string_view line) {
  std::vector<std::string_view> out;
  while (!line.empty()) {
    const std::size_t end = std::min(line.find(' '), line.size());
    if (end > 0) out.push_back(line.substr(0, end));
    line.remove_prefix(std::min(end + 1, line.size()));
  }
  return out;
}

std::optional<Operation> parse_operation(std::string_view line) {
  const auto w = words_of(line);
  if (w.size() < 5) return std::nullopt;
  Operation op;
  if (!number(w[0], op.begin) || !number(w[2], op.client)) return std::nullopt;
  if (w[1] != "-" && (!number(w[1], op.end) || op.end < op.begin)) return std::nullopt;
  const auto kind = std::ranges::find(kKinds, w[3]);
  if (kind == std::end(kKinds)) return std::nullopt;
  op.kind = static_cast<Kind>(kind - std::begin(kKinds));
  op.key = w[4];
  const auto rest = std::span(w).subspan(5);
  const auto answer = [&](std::string_view said) {
    op.done = said == "ok";
    return said == "ok" || said == "no" || (said == "-" && w[1] == "-");
  };
  switch (op.kind) {
    case Kind::get:
    case Kind::put:
      if (rest.size() != 1) return std::nullopt;
      op.value = rest[0];
      return op;
    case Kind::cas:
      if (rest.size() != 3 || !answer(rest[2])) return std::nullopt;
      op.expected = rest[0];
      op.value = rest[1];
      return op;
    case Kind::del:
      if (rest.size() != 1 || !answer(rest[0])) return std::nullopt;
      return op;
    case Kind::acquire:
      if (rest.size() != 1 || !number(rest[0], op.token)) return std::nullopt;
      return op;
    case Kind::release:
      if (rest.size() != 2 || !number(rest[0], op.token) || !answer(rest[1])) return std::nullopt;
      return op;
  }
  return std::nullopt;
}

}  // namespace

Verdict check_linearizable(const std::vector<Operation>& history, std::uint64_t max_steps) {
  std::map<std::string_view, std::vector<const Operation*>> by_key;
  for (const Operation& op : history) by_key[op.key].push_back(&op);
  Verdict out;
  out.operations = history.size();
  for (const auto& [key, ops] : by_key) {
    Search search(steps_of(ops), max_steps);
    const Verdict::Kind kind = search.run();
    out.steps += search.tried();
    if (kind == Verdict::Kind::linearizable) continue;
    out.kind = kind;
    out.key = key;
    out.what = search.stuck() == nullptr ? "" : format_operation(*search.stuck());
    if (kind == Verdict::Kind::violated) return out;
  }
  return out;
}

std::string format_operation(const Operation& op) {
  const bool open = op.end == Operation::kNeverEnded;
  const char* said = open ? "-" : op.done ? "ok" : "no";
  std::string out = str(op.begin, " ", open ? std::string("-") : str(op.end), " ", op.client, " ",
                        kKinds[static_cast<std::size_t>(op.kind)], " ", op.key);
  const auto value = [](const std::string& v) { return v.empty() ? std::string(kNil) : v; };
  switch (op.kind) {
    case Kind::get:
    case Kind::put: return str(out, " ", value(op.value));
    case Kind::cas: return str(out, " ", value(op.expected), " ", value(op.value), " ", said);
    case Kind::del: return str(out, " ", said);
    case Kind::acquire: return str(out, " ", op.token);
    case Kind::release: return str(out, " ", op.token, " ", said);
  }
  return out;
}

Result<std::vector<Operation>> parse_history(std::string_view text) {
  std::vector<Operation> out;
  for (std::size_t line_number = 1; !text.empty(); ++line_number) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.empty() || line.starts_with('#')) continue;
    auto op = parse_operation(line);
    if (!op) return fail(Errc::malformed, str("line ", line_number, " is not an operation: ", line.substr(0, 80)));
    out.push_back(std::move(*op));
  }
  return out;
}

}  // namespace holo::sim
