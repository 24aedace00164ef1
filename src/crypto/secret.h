// base/secret.h under the name this module has always had for it: secrets are cryptography's business.
#pragma once

#include "base/secret.h"

namespace holo::crypto {

using holo::constant_time_equal;
using holo::random_secret;
using holo::Secret;
using holo::wipe;

}  // namespace holo::crypto
