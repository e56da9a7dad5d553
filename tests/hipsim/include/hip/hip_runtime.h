#pragma once
// hiprtc includes the runtime by itself: see hipsim/prelude.h.
