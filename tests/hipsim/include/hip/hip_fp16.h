#pragma once
// The type is part of hipsim/prelude.h.
