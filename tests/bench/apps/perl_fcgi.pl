# The measured program on Perl's FCGI, libfcgi's own binding; the argument is the handler.
use strict;
use warnings;
use FCGI;

my $block = 'x' x 65536;

sub hello {
    my ($method, $address) = ($ENV{REQUEST_METHOD}, $ENV{REMOTE_ADDR});
    print "Content-Type: text/plain\r\n\r\nHello, world\n";
}

sub echo {
    my ($body, $left) = ('', $ENV{CONTENT_LENGTH});
    while ($left > 0) {
        my $got = read(STDIN, $body, $left, length $body) or last;
        $left -= $got;
    }
    print "Content-Type: application/octet-stream\r\n\r\n";
    print $body;
}

sub download {
    print "Content-Type: application/octet-stream\r\n\r\n";
    print $block for 1 .. 1024;
}

my %handlers = (hello => \&hello, echo => \&echo, download => \&download);
my $handler = $handlers{$ARGV[0]} or die "no such handler\n";
my $request = FCGI::Request();
$handler->() while $request->Accept() >= 0;
