/* Gives each file that is named to a target, as libFuzzer does: for compilers without it.
 *
 * "--overflow" instead writes one byte too many, and "--overflow-int" adds one to the
 * greatest int, "--leak" forgets a block: a build whose sanitizers work ends there.
 */
#include <limits.h>
#include <sys/stat.h>

#include "check.h"

static void replay(const char *path)
{
	FILE *file = fopen(path, "rb");
	struct stat status;
	uint8_t *data;
	size_t size;

	CHECK(file && !fstat(fileno(file), &status));
	size = (size_t)status.st_size;
	data = malloc(size ? size : 1);
	CHECK(data && fread(data, 1, size, file) == size);
	fclose(file);
	LLVMFuzzerTestOneInput(data, size);
	free(data);
}

int main(int argc, char **argv)
{
	int i;

	if (argc > 1 && !strcmp(argv[1], "--overflow")) {
		volatile uint8_t *volatile block = malloc(8);

		CHECK(block);
		block[7 + argc / 2] = 1;
		free((void *)block);
		return 0;
	}
	if (argc > 1 && !strcmp(argv[1], "--overflow-int")) {
		volatile int most = INT_MAX;

		most = most + argc / 2;
		return 0;
	}
	if (argc > 1 && !strcmp(argv[1], "--leak")) {
		uint8_t *volatile block = malloc(8);

		CHECK(block);
		block = NULL;
		return block != NULL;
	}
	for (i = 1; i < argc; i++)
		replay(argv[i]);
	printf("%d\n", argc - 1);
	return 0;
}
