// What the parts of Python's face share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "files/model.h"
#include "operations/neighbors.h"
#include "operations/network.h"
#include "operations/workspace.h"

namespace equibit {

namespace nb = nanobind;

using Doubles = nb::ndarray<double, nb::numpy, nb::c_contig, nb::device::cpu>;
using Positions = nb::ndarray<const double, nb::shape<-1, 3>, nb::c_contig, nb::device::cpu>;
using Species = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Lattice = nb::ndarray<const double, nb::shape<3, 3>, nb::c_contig, nb::device::cpu>;

/// Memory for as many concurrent calls as there ever were.
class Scratch {
 public:
  struct One {
    One(double cutoff, int threads) : neighbors(cutoff, 0.0), crew(threads) {}
    Neighbors neighbors;
    Workspace workspace;
    Crew crew;
  };
  /// Borrowed memory, given back at the end whatever happened.
  class Lease {
   public:
    Lease(Scratch& owner, std::unique_ptr<One> one) : owner_(owner), one_(std::move(one)) {
      one_->workspace.reset();
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease() {
      const std::lock_guard lock(owner_.mutex_);
      owner_.free_.push_back(std::move(one_));
    }
    One* operator->() const { return one_.get(); }

   private:
    Scratch& owner_;
    std::unique_ptr<One> one_;
  };

  Lease borrow(double cutoff, int threads) {
    std::unique_ptr<One> one;
    {
      const std::lock_guard lock(mutex_);
      const auto fits = [&](const auto& free) { return free->crew.threads() == threads; };
      const auto found = std::find_if(free_.begin(), free_.end(), fits);
      if (found != free_.end()) {
        one = std::move(*found);
        free_.erase(found);
      }
    }
    if (one == nullptr) one = std::make_unique<One>(cutoff, threads);
    return Lease(*this, std::move(one));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<One>> free_;
};

/// A model as Python holds it.
class Model {
 public:
  explicit Model(LoadedModel model) : model_(std::move(model)) {}

  const LoadedModel& about() const { return model_; }
  const Network& network() const { return *model_.network; }

  /// Atomic energies, forces and virial, the last two None without gradients.
  nb::tuple compute(const Species& species, const Positions& positions,
                    const std::optional<Lattice>& cell, std::array<bool, 3> periodic,
                    bool gradients, int threads) const;

 private:
  LoadedModel model_;
  mutable Scratch scratch_;
};

/// Throws nb::value_error where there is a periodic direction without a cell.
Cell cell_of(const std::optional<Lattice>& cell, std::array<bool, 3> periodic);

void bind_dynamics(nb::module_& m);

}  // namespace equibit
