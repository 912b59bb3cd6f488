// The reviews service of the bookinfo example: what two readers thought. v1 shows no stars; v2 (black) and v3 (red) ask the ratings
// service for them. It calls http://ratings:9080 as any program would: HTTP_PROXY, which net/http heeds, leads through the sidecar.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"time"
)

type rating struct {
	Stars int    `json:"stars,omitempty"`
	Color string `json:"color,omitempty"`
	Error string `json:"error,omitempty"`
}

type review struct {
	Reviewer string  `json:"reviewer"`
	Text     string  `json:"text"`
	Rating   *rating `json:"rating,omitempty"`
}

type answer struct {
	ID      string   `json:"id"`
	Version string   `json:"version"`
	Reviews []review `json:"reviews"`
}

// Headers that a request keeps on its way, so that routes and traces can follow it.
var forwarded = []string{"x-request-id", "traceparent", "tracestate", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "end-user", "cookie", "user-agent"}

var client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 64}}

func ratings(request *http.Request, id string) (map[string]int, error) {
	ctx, cancel := context.WithTimeout(request.Context(), 10*time.Second)
	defer cancel()
	call, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://ratings:9080/ratings/"+id, nil)
	if err != nil {
		return nil, err
	}
	for _, name := range forwarded {
		if value := request.Header.Get(name); value != "" {
			call.Header.Set(name, value)
		}
	}
	response, err := client.Do(call)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ratings answered %d", response.StatusCode)
	}
	var parsed struct {
		Ratings map[string]int `json:"ratings"`
	}
	return parsed.Ratings, json.Unmarshal(body, &parsed)
}

func write(response http.ResponseWriter, status int, body any) {
	response.Header().Set("Content-Type", "application/json")
	response.WriteHeader(status)
	_ = json.NewEncoder(response).Encode(body)
}

func main() {
	version := os.Getenv("SERVICE_VERSION")
	color := map[string]string{"v2": "black", "v3": "red"}[version]
	mux := http.NewServeMux()
	mux.HandleFunc("/health", func(response http.ResponseWriter, _ *http.Request) {
		write(response, http.StatusOK, map[string]string{"status": "Reviews is healthy"})
	})
	mux.HandleFunc("/reviews/", func(response http.ResponseWriter, request *http.Request) {
		id := strings.TrimPrefix(request.URL.Path, "/reviews/")
		reviews := []review{
			{Reviewer: "Reviewer1", Text: "An extremely entertaining play by Shakespeare. The slapstick humour is refreshing!"},
			{Reviewer: "Reviewer2", Text: "Absolutely fun and entertaining. The play lacks thematic depth when compared to other plays by Shakespeare."},
		}
		if color != "" {
			stars, err := ratings(request, id)
			for i := range reviews {
				if err != nil {
					reviews[i].Rating = &rating{Error: "Ratings service is currently unavailable"}
				} else {
					reviews[i].Rating = &rating{Stars: stars[reviews[i].Reviewer], Color: color}
				}
			}
			if err != nil {
				log.Printf("ratings: %v", err)
			}
		}
		write(response, http.StatusOK, answer{ID: id, Version: version, Reviews: reviews})
	})
	port := os.Getenv("PORT")
	if port == "" {
		port = "9080"
	}
	log.SetFlags(0)
	log.Printf("reviews %s listens on %s", version, port)
	log.Fatal(http.ListenAndServe("127.0.0.1:"+port, mux))
}
