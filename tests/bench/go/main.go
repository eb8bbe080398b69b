// Command peer is grpc-go for the bench: a client that makes load, and a server to compare with.
//
//	peer serve                                       serve until standard input ends; prints the port
//	peer load -port … -path … -calls … -body FILE …  make calls, check the answers, print how it went as JSON
//
// Messages are bytes on both sides: what protobuf costs in Go is not the question.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
)

type raw struct{}

func (raw) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error { *v.(*[]byte) = append([]byte(nil), data...); return nil }
func (raw) Name() string                       { return "proto" }

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatal("usage: peer serve | peer load …")
	}
	switch os.Args[1] {
	case "serve":
		serve()
	case "load":
		load(os.Args[2:])
	default:
		log.Fatalf("peer: no command %q", os.Args[1])
	}
}

// The server.

func serve() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.MaxRecvMsgSize(8<<20))
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "servicekit.testing.v1.EchoService",
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Echo", Handler: echo}},
		Streams: []grpc.StreamDesc{
			{StreamName: "Expand", Handler: expand, ServerStreams: true},
			{StreamName: "Sum", Handler: sum, ClientStreams: true},
			{StreamName: "Chat", Handler: chat, ClientStreams: true, ServerStreams: true},
		},
	}, nil)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	log.Fatal(server.Serve(listener))
}

func echo(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	var message []byte
	if err := decode(&message); err != nil {
		return nil, err
	}
	return &message, nil // request and response are of one form
}

func expand(_ any, stream grpc.ServerStream) error {
	var message []byte
	if err := stream.RecvMsg(&message); err != nil {
		return err
	}
	count := field(message, 2)
	for index := uint64(0); index < count; index++ {
		if err := stream.SendMsg(&message); err != nil { // near enough: as many bytes as a response has
			return err
		}
	}
	return nil
}

func sum(_ any, stream grpc.ServerStream) error {
	var total, count uint64
	for {
		var message []byte
		err := stream.RecvMsg(&message)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		total += field(message, 1)
		count++
	}
	response := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), total)
	response = protowire.AppendVarint(protowire.AppendTag(response, 2, protowire.VarintType), count)
	return stream.SendMsg(&response)
}

func chat(_ any, stream grpc.ServerStream) error {
	for {
		var message []byte
		if err := stream.RecvMsg(&message); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(&message); err != nil {
			return err
		}
	}
}

func field(message []byte, wanted protowire.Number) uint64 {
	for len(message) > 0 {
		number, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			return 0
		}
		message = message[size:]
		if number == wanted && kind == protowire.VarintType {
			value, _ := protowire.ConsumeVarint(message)
			return value
		}
		if size = protowire.ConsumeFieldValue(number, kind, message); size < 0 {
			return 0
		}
		message = message[size:]
	}
	return 0
}

// The load.

type loader struct {
	path     string
	body     []byte
	fresh    bool
	messages int // of a stream of requests; 0: one
	answers  int // of a stream of responses; 0: one
}

func load(arguments []string) {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	var l loader
	port := flags.Int("port", 0, "port on 127.0.0.1")
	calls := flags.Int64("calls", 1, "how many calls")
	connections := flags.Int("connections", 1, "over how many connections")
	streams := flags.Int("streams", 1, "how many calls at once on each")
	file := flags.String("body", "", "file with the request message")
	flags.StringVar(&l.path, "path", "", "path of the method")
	flags.BoolVar(&l.fresh, "fresh", false, "a traceparent, a request id and a deadline of its own in every call")
	flags.IntVar(&l.messages, "messages", 0, "messages in each stream of requests; 0: the call is no such stream")
	flags.IntVar(&l.answers, "answers", 0, "messages in each stream of responses; 0: the call is no such stream")
	_ = flags.Parse(arguments)
	var err error
	if l.body, err = os.ReadFile(*file); err != nil {
		log.Fatal(err)
	}
	taken := make([][]time.Duration, *connections**streams)
	var wait sync.WaitGroup
	left := *calls
	begin := time.Now()
	for c := range *connections {
		channel, err := grpc.NewClient(fmt.Sprintf("127.0.0.1:%d", *port),
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(8<<20)))
		if err != nil {
			log.Fatal(err)
		}
		for s := range *streams {
			wait.Add(1)
			go func() {
				defer wait.Done()
				for atomic.AddInt64(&left, -1) >= 0 {
					start := time.Now()
					if err := l.once(channel); err != nil {
						log.Fatalf("%s: %v", l.path, err)
					}
					taken[c**streams+s] = append(taken[c**streams+s], time.Since(start))
				}
			}()
		}
	}
	wait.Wait()
	seconds := time.Since(begin).Seconds()
	var all []time.Duration
	for _, some := range taken {
		all = append(all, some...)
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	quantile := func(part float64) float64 { return all[min(len(all)-1, int(float64(len(all))*part))].Seconds() }
	_ = json.NewEncoder(os.Stdout).Encode(map[string]float64{
		"seconds": seconds, "p50": quantile(0.5), "p99": quantile(0.99),
	})
}

func (l *loader) once(channel *grpc.ClientConn) error {
	ctx := context.Background()
	if l.fresh {
		var random [32]byte
		_, _ = rand.Read(random[:])
		ctx = metadata.AppendToOutgoingContext(ctx,
			"traceparent", fmt.Sprintf("00-%x-%x-01", random[:16], random[16:24]),
			"x-request-id", fmt.Sprintf("%016x", binary.BigEndian.Uint64(random[24:])))
		timed, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		ctx = timed
	}
	if l.messages == 0 && l.answers == 0 {
		var answer []byte
		if err := channel.Invoke(ctx, l.path, &l.body, &answer); err != nil {
			return err
		}
		if !bytes.Equal(answer, l.body) {
			return fmt.Errorf("answered %d bytes that are not those it was sent", len(answer))
		}
		return nil
	}
	return l.stream(ctx, channel)
}

func (l *loader) stream(ctx context.Context, channel *grpc.ClientConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	desc := &grpc.StreamDesc{ClientStreams: l.messages > 0, ServerStreams: l.answers > 0}
	stream, err := channel.NewStream(ctx, desc, l.path)
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		for range max(1, l.messages) {
			if err := stream.SendMsg(&l.body); err != nil {
				sent <- err
				return
			}
		}
		sent <- stream.CloseSend()
	}()
	count := 0
	for {
		var answer []byte
		err := stream.RecvMsg(&answer)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if count++; l.answers == 0 {
			break
		}
	}
	if count != max(1, l.answers) {
		return fmt.Errorf("answered with %d messages", count)
	}
	return <-sent
}
