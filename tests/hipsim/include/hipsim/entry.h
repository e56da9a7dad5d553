// Table entries: how the runtime calls a kernel whose arguments it has as an array of pointers.
#pragma once

#include <utility>

namespace hipsim {

template <class... A>
struct Signature {
    static constexpr unsigned sizes[sizeof...(A) + 1] = {sizeof(A)..., 0};

    template <size_t... I>
    static void unpack(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
        kernel(*static_cast<std::remove_reference_t<A>*>(arguments[I])...);
    }
    static void call(void* kernel, void** arguments) {
        unpack(reinterpret_cast<void (*)(A...)>(kernel), arguments, std::index_sequence_for<A...>());
    }
};

template <class... A>
hipsim_entry make_entry(const char* name, void (*kernel)(A...), unsigned bounds) {
    return {name, reinterpret_cast<void*>(kernel), Signature<A...>::call, Signature<A...>::sizes, sizeof...(A), bounds, 0};
}

template <class T>
hipsim_entry make_entry(const char* name, T* variable, unsigned) {
    return {name, const_cast<void*>(static_cast<const volatile void*>(variable)), nullptr, nullptr, 0, 0, sizeof(T)};
}

} // namespace hipsim
