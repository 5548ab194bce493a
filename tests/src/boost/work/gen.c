/* Generates C sources: `gen NAME TYPES` declares so many types with a function each. The compiler keeps all of them. */
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	const char *name = argv[1];
	long types = strtol(argv[2], NULL, 10);

	for (long i = 0; i < types; i++) {
		printf("struct %s_%ld { int key; const char *name; struct %s_%ld *next; };\n", name, i, name, i);
		printf("extern int %s_find_%ld(struct %s_%ld *from, const char *name, int key);\n", name, i, name, i);
	}
	printf("int %s(void) { return sizeof(struct %s_0) == 3 * sizeof(void *); }\n", name, name);
	return 0;
}
