/* Prints the energy and the forces of the molecule in an XYZ file.
 *
 *     energy MODEL.safetensors MOLECULE.xyz
 */
#include <equibit.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const symbols[] = {
    "H",  "He", "Li", "Be", "B",  "C",  "N",  "O",  "F",  "Ne", "Na", "Mg", "Al", "Si", "P",
    "S",  "Cl", "Ar", "K",  "Ca", "Sc", "Ti", "V",  "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn",
    "Ga", "Ge", "As", "Se", "Br", "Kr", "Rb", "Sr", "Y",  "Zr", "Nb", "Mo", "Tc", "Ru", "Rh",
    "Pd", "Ag", "Cd", "In", "Sn", "Sb", "Te", "I",  "Xe", "Cs", "Ba", "La", "Ce", "Pr", "Nd",
    "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W",  "Re",
    "Os", "Ir", "Pt", "Au", "Hg", "Tl", "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac", "Th",
    "Pa", "U",  "Np", "Pu", "Am", "Cm", "Bk", "Cf", "Es", "Fm", "Md", "No", "Lr", "Rf", "Db",
    "Sg", "Bh", "Hs", "Mt", "Ds", "Rg", "Cn", "Nh", "Fl", "Mc", "Lv", "Ts", "Og"};

static int32_t atomic_number(const char *symbol) {
  for (size_t z = 0; z < sizeof symbols / sizeof *symbols; ++z) {
    if (strcmp(symbol, symbols[z]) == 0) return (int32_t)z + 1;
  }
  return 0;
}

/* Number of atoms of a plain XYZ file, or 0 where it is none, after saying why. */
static int read_xyz(const char *path, int32_t **numbers, double **positions) {
  char line[512];
  int n = 0;
  FILE *file = fopen(path, "r");
  if (file == NULL) {
    fprintf(stderr, "%s: %s\n", path, strerror(errno));
    return 0;
  }
  if (fgets(line, sizeof line, file) == NULL || sscanf(line, "%d", &n) != 1 || n < 1 ||
      n > 1000000) {
    fprintf(stderr, "%s, line 1: expected the number of atoms of an XYZ file\n", path);
    n = 0;
  } else if (fgets(line, sizeof line, file) == NULL || strstr(line, "Lattice=") != NULL) {
    fprintf(stderr, "%s, line 2: expected a comment without a cell: this reads molecules\n", path);
    n = 0;
  }
  while (n > 0 && strchr(line, '\n') == NULL && fgets(line, sizeof line, file) != NULL) {
  } /* the rest of a long comment */
  *numbers = malloc((size_t)n * sizeof **numbers);
  *positions = malloc((size_t)n * 3 * sizeof **positions);
  for (int i = 0; i < n; ++i) {
    char symbol[4];
    double *r = *positions + 3 * i;
    if (*numbers == NULL || *positions == NULL) {
      fprintf(stderr, "there is not enough memory\n");
      n = 0;
    } else if (fgets(line, sizeof line, file) == NULL ||
               sscanf(line, "%3s %lf %lf %lf", symbol, r, r + 1, r + 2) != 4 ||
               ((*numbers)[i] = atomic_number(symbol)) == 0) {
      fprintf(stderr, "%s, line %d: expected atom %d of %d as: symbol x y z\n", path, i + 3, i, n);
      n = 0;
    }
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
    /* said already */
  } else if (equibit_load(argv[1], &model) != EQUIBIT_OK) {
    fprintf(stderr, "%s\n", equibit_error());
  } else if ((forces = malloc((size_t)n * 3 * sizeof *forces)) == NULL) {
    fprintf(stderr, "there is not enough memory\n");
  } else if (equibit_make_calculator(model, n, numbers, 0.5, 1, &calculator) != EQUIBIT_OK ||
             equibit_compute(calculator, positions, NULL, NULL, &energy, NULL, forces, NULL) !=
                 EQUIBIT_OK) {
    fprintf(stderr, "%s: %s\n", argv[2], equibit_error());
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
