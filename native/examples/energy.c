/* Prints the energy and the forces of the molecule in an XYZ file.
 *
 *     energy MODEL.safetensors MOLECULE.xyz
 */
#include <equibit.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const symbols[] = {"H",  "He", "Li", "Be", "B", "C", "N",  "O",  "F",
                                      "Ne", "Na", "Mg", "Al", "Si", "P", "S", "Cl", "Ar"};

static int32_t atomic_number(const char *symbol) {
  for (size_t z = 0; z < sizeof symbols / sizeof *symbols; ++z) {
    if (strcmp(symbol, symbols[z]) == 0) return (int32_t)z + 1;
  }
  return 0;
}

/* Number of atoms of a plain XYZ file, or 0 where it is none. */
static int read_xyz(const char *path, int32_t **numbers, double **positions) {
  FILE *file = fopen(path, "r");
  int n = 0;
  if (file == NULL) return 0;
  if (fscanf(file, "%d%*[^\n]", &n) < 1 || n < 1 || n > 1000000) n = 0;
  fscanf(file, "%*c%*[^\n]"); /* the comment */
  *numbers = malloc((size_t)n * sizeof **numbers);
  *positions = malloc((size_t)n * 3 * sizeof **positions);
  for (int i = 0; i < n; ++i) {
    char symbol[4];
    double *r = *positions + 3 * i;
    if (*numbers == NULL || *positions == NULL ||
        fscanf(file, "%3s %lf %lf %lf%*[^\n]", symbol, r, r + 1, r + 2) != 4) {
      n = 0;
      break;
    }
    (*numbers)[i] = atomic_number(symbol);
  }
  fclose(file);
  return n;
}

int main(int argc, char **argv) {
  equibit_model *model = NULL;
  equibit_calculator *calculator = NULL;
  int32_t *numbers = NULL;
  double *positions = NULL, *forces = NULL, energy = 0.0;
  int n = 0, status = 1;

  if (argc != 3) {
    fprintf(stderr, "usage: %s MODEL.safetensors MOLECULE.xyz\n", argv[0]);
    return 2;
  }
  n = read_xyz(argv[2], &numbers, &positions);
  if (n == 0) {
    fprintf(stderr, "%s is no XYZ file\n", argv[2]);
  } else if (equibit_load(argv[1], &model) != EQUIBIT_OK ||
             equibit_make_calculator(model, n, numbers, 0.5, 1, &calculator) != EQUIBIT_OK ||
             (forces = malloc((size_t)n * 3 * sizeof *forces)) == NULL ||
             equibit_compute(calculator, positions, NULL, NULL, &energy, NULL, forces, NULL) !=
                 EQUIBIT_OK) {
    fprintf(stderr, "%s\n", equibit_error());
  } else {
    printf("%s (%s, %s)\nenergy %.9f eV\nforces, eV/A\n", equibit_name(model),
           equibit_recipe(model), equibit_kernels(model), energy);
    for (int i = 0; i < n; ++i) {
      printf("%4d %12.6f %12.6f %12.6f\n", i, forces[3 * i], forces[3 * i + 1], forces[3 * i + 2]);
    }
    status = 0;
  }
  equibit_free_calculator(calculator);
  equibit_free_model(model);
  free(forces);
  free(positions);
  free(numbers);
  return status;
}
