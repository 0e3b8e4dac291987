/* A receiver for mod_proxy_fdpass as one writes it in C: the yardstick for ours.
   It inherits the listening socket as descriptor 0 and answers each client with "x". */
#define _GNU_SOURCE
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(void)
{
    for (;;) {
        int connection = accept4(0, NULL, NULL, SOCK_CLOEXEC), client = -1;
        char data[64];
        union {
            struct cmsghdr header;
            char room[CMSG_SPACE(sizeof(int))];
        } control;
        struct iovec part = {data, sizeof data};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1,
            .msg_control = &control, .msg_controllen = sizeof control};

        if (connection < 0)
            continue;
        if (recvmsg(connection, &message, MSG_CMSG_CLOEXEC) > 0) {
            struct cmsghdr *found = CMSG_FIRSTHDR(&message);
            if (found && found->cmsg_type == SCM_RIGHTS)
                memcpy(&client, CMSG_DATA(found), sizeof client);
        }
        close(connection);
        if (client >= 0 && send(client, "x", 1, MSG_NOSIGNAL) >= 0)
            close(client);
    }
}
