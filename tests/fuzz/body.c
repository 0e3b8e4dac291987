/* gather_body against a walk from byte to byte.
 *
 * Input: left (two bytes), skip (one), request id (one), then what has been received.
 */
#include "check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fcgi_body body, cut;
	uint8_t *copy, *out, *plain;
	size_t at = 0, done = 0, room;
	uint32_t left, skip, id;

	if (size < 4)
		return 0;
	cut.left = left = data[0] * 256u + data[1];
	cut.skip = skip = data[2];
	id = data[3];
	room = size - 4;
	copy = copy_of(data + 4, room);
	out = copy_of(copy, room); /* room for as many bytes, and no more */
	plain = copy_of(copy, room);
	for (;;) {
		for (; left && at < room; left--)
			plain[done++] = copy[at++];
		for (; !left && skip && at < room; skip--)
			at++;
		if (left || skip || room - at < 8)
			break;
		if (copy[at] != 1 || copy[at + 1] != 5 || copy[at + 2] ||
		    copy[at + 3] != id || (!copy[at + 4] && !copy[at + 5]))
			break;
		left = copy[at + 4] * 256u + copy[at + 5];
		skip = copy[at + 6];
		at += 8;
	}
	body = cut;
	fcgi_gather_body(copy, room, id, out, &body);
	CHECK(body.left == left && body.skip == skip);
	CHECK(body.consumed == at && body.size == done);
	CHECK(!memcmp(out, plain, done));
	/* in place: the same, and what is not consumed is untouched */
	memcpy(out, copy, room);
	body = cut;
	fcgi_gather_body(out, room, id, out, &body);
	CHECK(body.left == left && body.skip == skip);
	CHECK(body.consumed == at && body.size == done);
	CHECK(!memcmp(out, plain, done) && !memcmp(out + at, copy + at, room - at));
	free(copy);
	free(out);
	free(plain);
	return 0;
}
