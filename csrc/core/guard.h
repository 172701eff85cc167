// The border of the library: whatever is thrown inside (an allocation that fails, above all) becomes a Status.
#pragma once

#include <exception>
#include <new>

#include "core/status.h"

namespace edge_sdk {

template <class Body>
Status Guard(Body&& body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return {Code::kInternal, "out of memory"};
  } catch (const std::exception& e) {
    return {Code::kInternal, e.what()};
  } catch (...) {
    return {Code::kInternal, "an unknown error"};
  }
}

}  // namespace edge_sdk
