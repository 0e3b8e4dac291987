/* Hands one client over again and again, as httpd does it, and counts the answers.

   fdpass_load SOCKET SECONDS

   The client is one end of a Unix socket pair; the receiver sends a byte for each
   handover. Printed at the end: handovers that were answered, and seconds. It connects
   as fast as the receiver's backlog takes it; a full one puts it to sleep. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static struct sockaddr_un address = {.sun_family = AF_UNIX};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void hand_over(int client)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {"", 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1,
        .msg_control = &control, .msg_controllen = CMSG_LEN(sizeof(int))};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    int connection = socket(AF_UNIX, SOCK_STREAM, 0);

    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &client, sizeof client);
    if (connection < 0 ||
        connect(connection, (struct sockaddr *)&address, sizeof address) < 0)
        die("connect");
    if (sendmsg(connection, &message, MSG_NOSIGNAL) != 1)
        die("sendmsg");
    close(connection);
}

int main(int argc, char **argv)
{
    struct timeval limit = {10, 0};
    char answers[4096];
    int pair[2];
    long sent = 0, answered = 0;
    ssize_t size;

    if (argc != 3 || strlen(argv[1]) >= sizeof address.sun_path)
        return 2;
    strcpy(address.sun_path, argv[1]);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0 ||
        setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) < 0)
        die("socketpair");
    double start = now(), end = start + atof(argv[2]);
    while (now() < end) {
        hand_over(pair[1]);
        sent++;
        while ((size = recv(pair[0], answers, sizeof answers,
                    sent - answered < 128 ? MSG_DONTWAIT : 0)) > 0) {
            answered += size;
            if (sent - answered < 128)
                break;
        }
        if (sent - answered >= 128)
            die("no answer");
    }
    while (answered < sent) {
        size = recv(pair[0], answers, sizeof answers, 0);
        if (size <= 0)
            die("an answer is missing");
        answered += size;
    }
    printf("%ld %f\n", answered, now() - start);
    return 0;
}
