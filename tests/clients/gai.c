/* Prints the addresses of a name, one a line, as this C library's getaddrinfo finds them. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	struct addrinfo hints, *list, *entry;
	char text[INET6_ADDRSTRLEN];
	int error;

	if (argc != 2) {
		fprintf(stderr, "usage: %s NAME\n", argv[0]);
		return 2;
	}
	memset(&hints, 0, sizeof hints);
	hints.ai_socktype = SOCK_STREAM; /* each address once */
	error = getaddrinfo(argv[1], NULL, &hints, &list);
	if (error) {
		fprintf(stderr, "%s: %s\n", argv[1], gai_strerror(error));
		return 1;
	}
	for (entry = list; entry; entry = entry->ai_next) {
		const void *address = entry->ai_family == AF_INET
			? (const void *)&((struct sockaddr_in *)entry->ai_addr)->sin_addr
			: (const void *)&((struct sockaddr_in6 *)entry->ai_addr)->sin6_addr;
		puts(inet_ntop(entry->ai_family, address, text, sizeof text));
	}
	freeaddrinfo(list);
	return 0;
}
