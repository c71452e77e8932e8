/* equibit.h: energies, forces and stresses of an equibit model from C.
 *
 *     equibit_model *model;
 *     if (equibit_load("ethanol-w4a8.safetensors", &model) != EQUIBIT_OK) {
 *       fprintf(stderr, "%s\n", equibit_error());
 *     }
 *
 * Units: Å, eV, eV/Å, eV/Å³ (tension positive). Every function that can fail returns a status and
 * leaves its outputs unspecified on failure; equibit_error() says in words what went wrong. Nothing
 * is ever thrown. A model may be used by several threads at once.
 */
#ifndef EQUIBIT_H
#define EQUIBIT_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#if defined(EQUIBIT_BUILD)
#define EQUIBIT_API __declspec(dllexport)
#else
#define EQUIBIT_API __declspec(dllimport)
#endif
#else
#define EQUIBIT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum equibit_status {
  EQUIBIT_OK = 0,
  EQUIBIT_BAD_FILE = 1,      /* missing, damaged, foreign or newer file */
  EQUIBIT_BAD_MODEL = 2,     /* a network or recipe that the engine does not run */
  EQUIBIT_BAD_STRUCTURE = 3, /* unknown element, coinciding atoms, NaN, cell without volume */
  EQUIBIT_BAD_ARGUMENT = 4,  /* a null pointer or a number out of range */
  EQUIBIT_NOT_FINITE = 5,    /* atoms far outside what the model was trained on */
  EQUIBIT_NO_MEMORY = 6,
  EQUIBIT_INTERNAL = 7
} equibit_status;

typedef struct equibit_model equibit_model;
typedef struct equibit_calculator equibit_calculator;

/* What the last failure on this thread was; empty after none. Valid until the next call. */
EQUIBIT_API const char* equibit_error(void);

/* Reads and checks a model file. */
EQUIBIT_API equibit_status equibit_load(const char* path, equibit_model** model);

/* The same from memory, which is not needed afterwards. */
EQUIBIT_API equibit_status equibit_load_bytes(const void* bytes, size_t size,
                                              equibit_model** model);

/* Null is allowed. Calculators of the model must be gone. */
EQUIBIT_API void equibit_free_model(equibit_model* model);

/* Texts that live as long as the model. */
EQUIBIT_API const char* equibit_name(const equibit_model* model);
EQUIBIT_API const char* equibit_recipe(const equibit_model* model);
EQUIBIT_API const char* equibit_kernels(const equibit_model* model);

/* Interaction radius of a layer in Å. */
EQUIBIT_API double equibit_cutoff(const equibit_model* model);

/* Number of elements the model knows; fills at most `capacity` atomic numbers, ascending. */
EQUIBIT_API size_t equibit_elements(const equibit_model* model, int32_t* numbers, size_t capacity);

/* A system whose atoms move: it keeps its list of neighbours while none has moved by more than half
 * of `skin` Å. For one thread at a time, which more than one may help: `threads`, 1 to 256, pays
 * from a few hundred atoms on and changes no bit of the results.
 *
 * numbers: atomic numbers [n_atoms]
 */
EQUIBIT_API equibit_status equibit_make_calculator(const equibit_model* model, int64_t n_atoms,
                                                   const int32_t* numbers, double skin,
                                                   int32_t threads,
                                                   equibit_calculator** calculator);
EQUIBIT_API void equibit_free_calculator(equibit_calculator* calculator);

/* Energy, and what else is not null.
 *
 * positions:       [n_atoms][3]
 * cell:            lattice vectors as rows [3][3], or null for an open system
 * periodic:        [3], nonzero for the directions that repeat, or null for all of those of a cell
 * energy:          total energy
 * atomic_energies: [n_atoms], or null
 * forces:          [n_atoms][3], or null
 * stress:          [3][3], or null; needs a cell that repeats in all directions
 */
EQUIBIT_API equibit_status equibit_compute(equibit_calculator* calculator, const double* positions,
                                           const double* cell, const int32_t* periodic,
                                           double* energy, double* atomic_energies, double* forces,
                                           double* stress);

#ifdef __cplusplus
}
#endif

#endif /* EQUIBIT_H */
