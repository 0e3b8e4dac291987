/* What environ.c and step.c tell the scoreboard. */
#ifndef SLOT_H
#define SLOT_H

#include "layout.h"

/* Whether a request is one that is served without Python's having a look: it does not ask
 * for the state of the pool, and is not the last of the process. */
int slot_takes(const struct fcgi_slot *slot, const struct layout *layout,
	       const uint8_t *list, const struct fcgi_pair *pairs);

/* Note that it begins, with so many bytes of a body, and that it has ended and the process
 * waits for the next. */
void slot_begins(struct fcgi_slot *slot, const struct layout *layout, const uint8_t *list,
		 const struct fcgi_pair *pairs, uint32_t body);
void slot_ends(struct fcgi_slot *slot);

#endif
