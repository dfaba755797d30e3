package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/alibabacloud-go/tea/tea"
	olderrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
)

// raised describes an error as an application sees it: by its type and that type's fields.
func raised(err error) result {
	var newest *tea.SDKError
	var old *olderrors.ServerError
	switch {
	case errors.As(err, &newest):
		// The answer's headers are lost, the members of its body are in Data.
		var data struct{ RetryAfter int }
		_ = json.Unmarshal([]byte(tea.StringValue(newest.Data)), &data)
		return result{
			Exception:  typeOf(newest),
			Code:       tea.StringValue(newest.Code),
			Message:    tea.StringValue(newest.Message),
			StatusCode: tea.IntValue(newest.StatusCode),
			RetryAfter: data.RetryAfter,
		}
	case errors.As(err, &old):
		return result{
			Exception:  typeOf(old),
			Code:       old.ErrorCode(),
			Message:    old.Message(),
			StatusCode: old.HttpStatus(),
			RetryAfter: first(old.RespHeaders["X-Acs-Retry-After"]),
		}
	}
	return result{Exception: typeOf(err), Message: err.Error()}
}

func typeOf(err error) string {
	return fmt.Sprintf("%T", err)
}

func first(values []string) int {
	if len(values) == 0 {
		return 0
	}
	number, _ := strconv.Atoi(values[0])
	return number
}
