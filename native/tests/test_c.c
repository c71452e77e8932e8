/* C's face, used from C: results, refusals, no crash. Arguments: MODEL.safetensors. */
#include <equibit.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

static void check(int holds, const char *what) {
  if (holds) return;
  printf("failed: %s (%s)\n", what, equibit_error());
  ++failures;
}

#define ATOMS 9
static const int32_t numbers[ATOMS] = {6, 6, 8, 1, 1, 1, 1, 1, 1};
static const double ethanol[3 * ATOMS] = {-0.748, -0.015, 0.024,  0.558,  0.420,  -0.278, 1.293,
                                          -0.202, -0.901, -0.988, -0.850, -0.637, -1.316, 0.870,
                                          -0.227, -0.814, -0.312, 1.079,  0.496,  1.352,  -0.851,
                                          1.117,  0.608,  0.649,  1.950,  0.441,  -1.086};

static void test_results(const equibit_model *model) {
  equibit_calculator *calculator = NULL;
  double positions[3 * ATOMS], forces[3 * ATOMS], atoms[ATOMS], stress[9];
  double energy, up, down, sum = 0.0;
  const double cell[9] = {14, 0, 0, 0, 14, 0, 0, 0, 14};
  int32_t elements[8];

  check(equibit_elements(model, elements, 8) == 3 && elements[2] == 8, "elements");
  check(equibit_elements(model, NULL, 0) == 3, "elements without room");
  check(equibit_cutoff(model) > 1.0, "cutoff");
  check(strlen(equibit_name(model)) > 0 && strlen(equibit_kernels(model)) > 0, "texts");
  check(equibit_make_calculator(model, ATOMS, numbers, 0.5, 1, &calculator) == EQUIBIT_OK, "make");
  memcpy(positions, ethanol, sizeof positions);
  check(equibit_compute(calculator, positions, NULL, NULL, &energy, atoms, forces, NULL) ==
            EQUIBIT_OK,
        "compute");
  for (int i = 0; i < ATOMS; ++i) sum += atoms[i];
  check(fabs(sum - energy) < 1e-9, "atomic energies add up");
  for (int k = 0; k < 3 * ATOMS; k += 5) {
    const double step = 2e-3;
    positions[k] = ethanol[k] + step;
    equibit_compute(calculator, positions, NULL, NULL, &up, NULL, NULL, NULL);
    positions[k] = ethanol[k] - step;
    equibit_compute(calculator, positions, NULL, NULL, &down, NULL, NULL, NULL);
    positions[k] = ethanol[k];
    check(fabs(forces[k] + (up - down) / (2 * step)) < 5e-3, "forces are the gradient");
  }
  check(equibit_compute(calculator, positions, cell, NULL, &up, NULL, NULL, stress) == EQUIBIT_OK,
        "a cell");
  check(fabs(up - energy) < 1e-4, "a large cell changes nothing");
  check(isfinite(stress[0]) && fabs(stress[1] - stress[3]) < 1e-12, "stress");

  check(equibit_compute(calculator, positions, NULL, NULL, &up, NULL, NULL, stress) ==
                EQUIBIT_BAD_STRUCTURE &&
            strstr(equibit_error(), "stress") != NULL,
        "no cell, no stress");
  positions[4] = NAN;
  check(equibit_compute(calculator, positions, NULL, NULL, &up, NULL, forces, NULL) ==
            EQUIBIT_BAD_STRUCTURE,
        "NaN");
  positions[4] = INFINITY;
  check(equibit_compute(calculator, positions, cell, NULL, &up, NULL, forces, NULL) ==
            EQUIBIT_BAD_STRUCTURE,
        "infinity");
  memcpy(positions, ethanol, sizeof positions);
  memcpy(positions, positions + 3, 3 * sizeof *positions);
  check(equibit_compute(calculator, positions, NULL, NULL, &up, NULL, forces, NULL) ==
            EQUIBIT_BAD_STRUCTURE,
        "coinciding atoms");
  check(equibit_compute(calculator, ethanol, NULL, NULL, &up, NULL, forces, NULL) == EQUIBIT_OK &&
            up == energy,
        "a failure leaves the calculator as it was");
  check(
      equibit_compute(calculator, NULL, NULL, NULL, &up, NULL, NULL, NULL) == EQUIBIT_BAD_ARGUMENT,
      "null positions");
  equibit_free_calculator(calculator);
}

static void test_refusals(const equibit_model *model, const char *path) {
  equibit_calculator *calculator = NULL;
  equibit_model *none = NULL;
  const int32_t fluorine[2] = {1, 9};
  FILE *file = fopen(path, "rb");
  char *bytes = malloc(1 << 20);
  size_t size = file == NULL || bytes == NULL ? 0 : fread(bytes, 1, 1 << 20, file);

  check(equibit_make_calculator(model, 2, fluorine, 0.5, 1, &calculator) == EQUIBIT_BAD_STRUCTURE &&
            strstr(equibit_error(), "atom 1 has atomic number 9") != NULL &&
            strstr(equibit_error(), "it knows 1 6 8") != NULL,
        "an unknown element is named");
  check(equibit_make_calculator(model, INT64_MAX, numbers, 0.5, 1, &calculator) ==
            EQUIBIT_BAD_ARGUMENT,
        "atoms beyond all memory");
  check(equibit_make_calculator(model, 0, numbers, 0.5, 1, &calculator) == EQUIBIT_BAD_ARGUMENT,
        "no atoms");
  check(
      equibit_make_calculator(model, ATOMS, numbers, NAN, 1, &calculator) == EQUIBIT_BAD_STRUCTURE,
      "a skin that is none");
  check(equibit_make_calculator(model, ATOMS, numbers, 0.5, 0, &calculator) == EQUIBIT_BAD_ARGUMENT,
        "no threads");
  check(equibit_load("/no/such/model", &none) == EQUIBIT_BAD_FILE &&
            strstr(equibit_error(), "/no/such/model: No such file") != NULL,
        "no file");
  check(equibit_load(__FILE__, &none) == EQUIBIT_BAD_FILE &&
            strncmp(equibit_error(), __FILE__ ": this is not an equibit file",
                    sizeof __FILE__ + 20) == 0,
        "a file of another kind is named");
  check(equibit_load(NULL, &none) == EQUIBIT_BAD_ARGUMENT, "no path");
  check(size > 1000 && equibit_load_bytes(bytes, size, &none) == EQUIBIT_OK, "from memory");
  equibit_free_model(none);
  none = NULL;
  for (size_t n = 0; n < size; n += 1 + n / 50) {
    check(equibit_load_bytes(bytes, n, &none) == EQUIBIT_BAD_FILE, "a file cut short");
  }
  for (size_t n = 0; n < size; n += 37) {
    bytes[n] ^= 4;
    check(equibit_load_bytes(bytes, size, &none) == EQUIBIT_BAD_FILE, "a changed file");
    bytes[n] ^= 4;
  }
  check(none == NULL, "nothing is left behind");
  equibit_free_model(NULL);
  equibit_free_calculator(NULL);
  free(bytes);
  if (file != NULL) fclose(file);
}

int main(int argc, char **argv) {
  equibit_model *model = NULL;
  if (argc != 2 || equibit_load(argv[1], &model) != EQUIBIT_OK) {
    printf("no model: %s\n", equibit_error());
    return 1;
  }
  test_results(model);
  test_refusals(model, argv[1]);
  equibit_free_model(model);
  if (failures == 0) printf("all passed\n");
  return failures != 0;
}
