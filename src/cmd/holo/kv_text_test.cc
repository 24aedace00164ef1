#include "cmd/holo/kv_text.h"

#include <gtest/gtest.h>

namespace holo::cmd {
namespace {

TEST(KvText, APrefixIsTheRangeUpToTheNextOne) {
  EXPECT_EQ(prefix_range("jobs/").end(), "jobs0");
  EXPECT_EQ(prefix_range("a\xff").end(), "b");
  EXPECT_EQ(prefix_range("\xff\xff").end(), std::string(1, '\0')) << "nothing comes after them";
  EXPECT_EQ(prefix_range("").key(), std::string(1, '\0'));
}

TEST(KvText, LinesStayLines) {
  EXPECT_EQ(kv_printable("caf\xc3\xa9"), "caf\xc3\xa9");
  EXPECT_EQ(kv_printable("a\nb\tc\\d\x1b[0m"), "a\\nb\\tc\\\\d\\x1b[0m");
  EXPECT_EQ(kv_printable("\xff\xc3\xa9"), "\\xff\\xc3\\xa9");
}

TEST(KvText, BytesGoThroughJsonAndBack) {
  wire::KvPair pair;
  pair.set_key("k");
  pair.set_value(std::string("\0\xff", 2));
  EXPECT_EQ(kv_json(pair)["value_base64"], "AP8=");
  const auto txn = parse_kv_txn(R"({"then": [{"put": "k", "value_base64": "AP8="}]})");
  ASSERT_TRUE(txn);
  EXPECT_EQ(txn->then(0).put().value(), pair.value());
}

TEST(KvText, ATransactionOfEveryKind) {
  const auto txn = parse_kv_txn(R"({
    "compare": [{"key": "a", "version": 0}, {"key": "b", "value": "x", "is": "!="}, {"key": "c", "modified": 7, "is": ">"}],
    "then": [{"put": "a", "value": "1", "previous": true}, {"get": "p/", "prefix": true, "limit": 3}],
    "else": [{"delete": "a", "end": "c"}]})");
  ASSERT_TRUE(txn) << txn.error().message;
  EXPECT_EQ(txn->compares(1).relation(), wire::KvCompare::NOT_EQUAL);
  EXPECT_EQ(txn->compares(2).number(), 7u);
  EXPECT_TRUE(txn->then(0).put().previous());
  EXPECT_EQ(txn->then(1).get().range().end(), "p0");
  EXPECT_EQ(txn->otherwise(0).delete_().range().end(), "c");
}

class BadTxn : public ::testing::TestWithParam<const char*> {};

TEST_P(BadTxn, IsRefused) {
  const auto txn = parse_kv_txn(GetParam());
  ASSERT_FALSE(txn);
  EXPECT_EQ(txn.error().code, Errc::invalid_argument);
  EXPECT_FALSE(txn.error().message.empty());
}

INSTANTIATE_TEST_SUITE_P(
    Texts, BadTxn,
    ::testing::Values("", "[]", "{", "null", R"({"than": []})", R"({"then": {}})", R"({"then": [1]})",
                      R"({"then": [{}]})", R"({"then": [{"put": "a"}]})", R"({"then": [{"put": 1, "value": "x"}]})",
                      R"({"then": [{"put": "a", "get": "a"}]})", R"({"then": [{"put": "a", "value": "", "end": "b"}]})",
                      R"({"then": [{"get": "a", "prefix": 1}]})", R"({"then": [{"get": "a", "limit": -1}]})",
                      R"({"then": [{"get": "a", "limit": 99999999999}]})",
                      R"({"then": [{"delete": "a", "prefix": true, "end": "b"}]})",
                      R"({"then": [{"put": "a", "value_base64": "?"}]})", R"({"compare": [{"key": "a"}]})",
                      R"({"compare": [{"version": 1}]})", R"({"compare": [{"key": "a", "version": 1, "value": "x"}]})",
                      R"({"compare": [{"key": "a", "version": 1, "is": "~"}]})",
                      R"({"compare": [{"key": "a", "version": 1.5}]})"));

}  // namespace
}  // namespace holo::cmd
