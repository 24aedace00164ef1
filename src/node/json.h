// Writing JSON, for status answers. Values are appended in order; nothing is kept but the text.
#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>

namespace holo::node {

/// JsonWriter w; w.object([&] { w.field("id", 1); w.key("list"); w.array([&] { w.value("a"); }); }); w.text();
class JsonWriter {
 public:
  template <class Body>
  void object(Body body) {
    nested('{', '}', body);
  }
  template <class Body>
  void array(Body body) {
    nested('[', ']', body);
  }
  void key(std::string_view name) {
    value(name);
    text_ += ':';
    first_ = true;
  }
  template <class T>
  void field(std::string_view name, T v) {
    key(name);
    value(v);
  }

  /// Quoted; bytes that are not UTF-8 are replaced, so that the text always parses.
  void value(std::string_view s);
  void value(const std::string& s) { value(std::string_view(s)); }
  void value(const char* s) { value(std::string_view(s)); }
  void value(bool v) { raw(v ? "true" : "false"); }
  /// Not a number: null, which is all that JSON has for it.
  void value(double v);
  template <std::integral T>
    requires(!std::same_as<T, bool>)
  void value(T v) {
    raw(std::to_string(v));
  }

  [[nodiscard]] const std::string& text() const { return text_; }

 private:
  void raw(std::string_view s) {
    if (!first_) text_ += ',';
    first_ = false;
    text_ += s;
  }
  template <class Body>
  void nested(char open, char close, Body& body) {
    raw(std::string_view(&open, 1));
    first_ = true;
    body();
    text_ += close;
    first_ = false;
  }
  std::string text_;
  bool first_ = true;
};

}  // namespace holo::node
