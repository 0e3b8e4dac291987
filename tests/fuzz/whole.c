/* scan_whole against a walk from record to record.
 *
 * Input: what has been received.
 */
#include "check.h"

struct record {
	unsigned version, type, id, length, padding;
	size_t content, end;
};

/* The record that begins there; 0: not all of it has come. */
static int a_record(const uint8_t *data, size_t size, size_t at, struct record *record)
{
	const uint8_t *header = data + at;

	if (at > size || size - at < 8)
		return 0;
	record->version = header[0];
	record->type = header[1];
	record->id = header[2] * 256u + header[3];
	record->length = header[4] * 256u + header[5];
	record->padding = header[6];
	record->content = at + 8;
	record->end = record->content + record->length + record->padding;
	return record->end <= size && record->version == 1;
}

static int is_end(const struct record *record, unsigned type, unsigned id, uint8_t reserved)
{
	return record->type == type && record->id == id && !record->length &&
	       !record->padding && !reserved;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct record begin, params, last, body, end;
	struct fcgi_whole whole;
	uint8_t *copy = copy_of(data, size);
	int expected;

	memset(&whole, 0xa5, sizeof whole);
	memset(&body, 0, sizeof body);
	expected = a_record(copy, size, 0, &begin) && begin.type == 1 && begin.id &&
		   begin.length == 8 && !begin.padding && copy[8] == 0 && copy[9] == 1 &&
		   a_record(copy, size, begin.end, &params) && params.type == 4 &&
		   params.id == begin.id && params.length &&
		   a_record(copy, size, params.end, &last) &&
		   is_end(&last, 4, begin.id, copy[params.end + 7]) &&
		   a_record(copy, size, last.end, &body);
	end = body;
	if (expected && body.length)
		expected = body.type == 5 && body.id == begin.id &&
			   a_record(copy, size, body.end, &end);
	expected = expected && is_end(&end, 5, begin.id, copy[end.content - 1]);
	CHECK(fcgi_scan_whole(copy, size, &whole) == expected);
	if (expected) {
		CHECK(whole.request_id == begin.id);
		CHECK(whole.keep == (copy[10] & 1u));
		CHECK(whole.content == params.content);
		CHECK(whole.content_length == params.length);
		CHECK(whole.body == body.content && whole.body_length == body.length);
		CHECK(whole.end == end.end);
	}
	free(copy);
	return 0;
}
