// Status: what went wrong, in words for the one who called. Kernels and checks return it; nothing is thrown.
#pragma once

#include <string>
#include <utility>

namespace edge_sdk {

enum class Code { kOk = 0, kInvalidArgument = 1, kNotFinite = 2, kCacheFull = 3, kNoChoice = 4, kDevice = 5, kInternal = 6 };

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

inline Status InvalidArgument(std::string message) { return {Code::kInvalidArgument, std::move(message)}; }

}  // namespace edge_sdk

#define EDGE_RETURN_IF_ERROR(expression)              \
  do {                                                \
    ::edge_sdk::Status edge_status = (expression);    \
    if (!edge_status.ok()) return edge_status;        \
  } while (false)
